"""The colours of the page: in light mode those of the figures, in dark mode similar but lighter ones."""

from collections.abc import Mapping
from typing import Any

from figures.style import COLOURS, LINES, SERIES

# Near the light colours, and as distinct for colour-blind readers (``tests/figures/test_report.py``).
_DARK: Mapping[str, str] = {
    "score": "#0888c8",
    "transfer": "#cc640c",
    "control": "#3bc18c",
    "random_init": "#9a76ff",
    "pixels": "#efa608",
    "chance": "#e1dfdd",
    "muted": "#81838a",
    "undefined": "#3a3f45",
    "s2": "#c476a2",
    "s3": "#3dc5fc",
    "s5": "#a67751",
}
_SAME = {"clean": "control", "corrupt": "transfer", "s0": "score", "s1": "pixels", "s4": "chance"}


def colours(scheme: str) -> dict[str, str]:
    """The colour of each style key (such as ``score``) and numbered series (``s0``); ``scheme`` is light or dark."""
    light = {**COLOURS, **{f"s{number}": colour for number, colour in enumerate(SERIES)}}
    return light if scheme == "light" else {name: _DARK[_SAME.get(name, name)] for name in light}


def colour_of(colour: str) -> str:
    """The style key or number of a series that has this light colour, such as ``score`` or ``s3``."""
    light = colours("light")
    return next(name for name in light if light[name] == colour)


def as_css() -> str:
    """The colours as CSS custom properties for both schemes."""
    light, dark = colours("light"), colours("dark")
    return ":root{" + "".join(f"--{name}:light-dark({light[name]},{dark[name]});" for name in light) + "}"


def dashes(concept: str) -> str | None:
    """The dashes of a style key's line in SVG; None for a solid line."""
    style = LINES[concept][0] if concept in LINES else "-"
    if isinstance(style, str):
        return None
    lengths: Any = style[1]
    return " ".join(f"{1.6 * length:g}" for length in lengths)  # Matplotlib counts in line widths
