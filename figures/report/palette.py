"""The project's colours for a page: in light those of all figures, in dark lighter ones near them."""

from collections.abc import Mapping
from typing import Any

from matplotlib.colors import to_rgb

from figures.style import COLOURS, LINES, SERIES

PAPER = {"light": "#ffffff", "dark": "#14171a"}
CONTRAST = 4.5  # of a curve to the dark paper at least: what WCAG 2.2 asks of text
# Near those of light, and as far apart as they are for colour-blind readers: ``tests/figures/test_report.py``.
_DARK: Mapping[str, str] = {
    "score": "#0888c8",
    "transfer": "#cc640c",
    "control": "#3bc18c",
    "random_init": "#e39dd2",
    "pixels": "#efa608",
    "chance": "#e1dfdd",
    "muted": "#81838a",
    "undefined": "#3a3f45",
    "s2": "#c476a2",
    "s3": "#3dc5fc",
    "s5": "#a67751",
}
_SAME = {"clean": "control", "corrupt": "transfer", "s0": "score", "s1": "pixels", "s4": "chance"}  # as in light


def colours(scheme: str) -> dict[str, str]:
    """The colour of every concept, and of series by number (``s0``, ``s1``, ...).

    Args:
        scheme: ``light`` or ``dark``.
    """
    light = {**COLOURS, **{f"s{number}": colour for number, colour in enumerate(SERIES)}}
    return light if scheme == "light" else {name: _DARK[_SAME.get(name, name)] for name in light}


def contrast(first: str, second: str) -> float:
    """The ratio of two colours' luminances, from 1 to 21.

    Source: W3C 2023, Web Content Accessibility Guidelines 2.2, "contrast ratio" and "relative luminance".
    """
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def as_css() -> str:
    """The colours as custom properties that follow the page's scheme."""
    light, dark = colours("light"), colours("dark")
    return ":root{" + "".join(f"--{name}:light-dark({light[name]},{dark[name]});" for name in light) + "}"


def dashes(concept: str) -> str | None:
    """The dashes of a concept's line as SVG writes them; None for a full line."""
    style = LINES[concept][0] if concept in LINES else "-"
    if isinstance(style, str):
        return None
    lengths: Any = style[1]
    return " ".join(f"{1.6 * length:g}" for length in lengths)  # Matplotlib counts in line widths


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
