"""The style of all figures: sizes, a colour, line style and marker for each style key such as ``score``, and saving.

The colours are near Okabe and Ito's palette; any two that can occur in one figure are distinct under deuteranopia and
protanopia too (``tests/figures/test_style.py`` simulates both). Line styles or markers repeat the information, so
figures can be read in grey.
Source: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.read_run import FigurePaths

Width = Literal["one", "two"]
Panels = Axes | Sequence[Axes] | npt.NDArray[np.object_]
# Inches: one column of a two-column page, and both; journals use about 89 and 183 mm.
WIDTHS: dict[str, float] = {"one": 3.5, "two": 7.2}

# style key -> colour, the same in every figure
COLOURS = {
    "score": "#0072B2",
    "transfer": "#AC4800",
    "control": "#25A76A",
    "random_init": "#9482F7",
    "pixels": "#CA8400",
    "chance": "#333333",
    "muted": "#7C7E85",
    "clean": "#25A76A",
    "corrupt": "#AC4800",
    "undefined": "#DDDDDD",
}
# style key -> line style and marker: the keys of one figure differ in at least one of them
LINES: dict[str, tuple[Any, str]] = {
    "score": ("-", "o"),
    "transfer": ("-", "s"),
    "control": ((0, (4, 1.2, 1, 1.2)), ""),
    "random_init": ("-", ""),
    "pixels": ((0, (1, 1.2)), ""),
    "chance": ((0, (5, 3)), ""),
    "clean": ("-", ""),
    "corrupt": ((0, (5, 3)), ""),
}
OPEN = frozenset({"transfer"})  # style keys with white markers, since small shapes look similar
# Colours and markers of curves that have no style key, in this order.
SERIES = ("#0072B2", "#CA8400", "#CB78A6", "#0198F5", "#333333", "#844E2E")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "X")
# token group or knockout -> number of its colour in SERIES, the same in every figure that shows it
_SERIES_OF = {
    "image->last": 0, "image->question": 1, "question->last": 2, "object->last": 3,
    "image": 0, "question": 1, "last": 2, "object": 3,
}  # fmt: skip
# For fractions and effects, in a symmetric range around 0: red above, blue below, white at 0.
DIVERGING = "RdBu_r"
# For probabilities, from 0 to 1: lightness rises evenly, so it works in grey and for colour-blind readers.
SEQUENTIAL = "cividis"

# plan -> colour
PLAN_COLOURS = {
    "full": COLOURS["score"],
    "middle band": COLOURS["transfer"],
    "start": COLOURS["muted"],
    "projector only": COLOURS["pixels"],
}
PLAN_MARKERS = {
    "full": "D",
    "middle band": "o",
    "start": "X",
    "projector only": "P",
    "complement": "s",
    "first": "<",
    "last": ">",
    "evenly spread": "*",
    "random layers": "h",
    "LoRA everywhere": "^",
    "LoRA on the band": "v",
    "full under the token plan": "p",
    "middle band under the token plan": "H",
}

_LONGEST = 100  # characters of a file's name before its ending
_NO_GLYPH = "missing from font(s)"  # in Matplotlib's warnings
_MISSING = "figures: no installed font has some characters of a name; the tables and the report show them"
_said: set[str] = set()
_SETTINGS: dict[Any, Any] = {  # keys of matplotlib's rcParams
    "font.size": 8.0,
    "text.parse_math": False,  # a name may hold "$"
    "text.usetex": False,  # LaTeX is not needed, and a name may hold "_"
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "figure.titlesize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "lines.linewidth": 1.3,
    "lines.markersize": 2.6,
    "hatch.linewidth": 0.6,
    "figure.dpi": 110.0,
    "savefig.dpi": 200.0,
    "svg.hashsalt": "laccolith",  # the same element ids in every run
    "svg.fonttype": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Context manager: apply this package's style to Matplotlib.

    Matplotlib's interactive mode, which a notebook's backend sets at the first figure, is kept, so that later figures
    show.
    """
    import seaborn as sns  # takes half a second, which runs that draw nothing do not need

    interactive = mpl.is_interactive()
    try:
        with mpl.rc_context(), sns.axes_style("ticks"), mpl.rc_context(_SETTINGS):
            try:
                yield
            finally:
                interactive = mpl.is_interactive()
    finally:
        mpl.interactive(interactive)


def series_numbers(names: Sequence[str]) -> list[int]:
    """The number of each curve, which decides its colour and marker: fixed for known token groups, else the next one.

    Example:
        >>> series_numbers(["question->last", "mine", "image->last"])  # image->last is 0 in every figure
        [2, 1, 0]
    """
    taken: dict[int, int] = {}  # number -> place among the names
    for place, name in enumerate(names):
        if name in _SERIES_OF:
            taken.setdefault(_SERIES_OF[name], place)
    numbers = {place: number for number, place in taken.items()}
    free = iter(number for number in range(len(names) + len(_SERIES_OF)) if number not in taken)
    return [numbers[place] if place in numbers else next(free) for place in range(len(names))]


def series_look(number: int) -> tuple[int, str]:
    """The place of a curve's colour in ``SERIES``, and its marker; all curves of a figure differ in one of the two."""
    return number % len(SERIES), SERIES_MARKERS[(number + number // len(SERIES)) % len(SERIES_MARKERS)]


def plan_colour(plan: str) -> str:
    """The colour of a plan in all figures, under a token plan too; reference models are dark."""
    kinds = {"LoRA": COLOURS["random_init"], "reference ": COLOURS["chance"]}
    other = next((colour for kind, colour in kinds.items() if plan.startswith(kind)), COLOURS["control"])
    return PLAN_COLOURS.get(plan.removesuffix(" under the token plan"), other)


def plan_marker(plan: str) -> str:
    """The marker of a plan in all figures."""
    return PLAN_MARKERS.get(plan, "d")


def figure_of(drawn: Figure | Panels) -> Figure:
    """The figure of the Axes."""
    if isinstance(drawn, Figure):
        return drawn
    first = drawn if isinstance(drawn, Axes) else next(iter(np.asarray(drawn, dtype=object).flat))
    figure = first.get_figure(root=True)
    if figure is None:
        raise ValueError("drawn must belong to a figure, got Axes that were removed from theirs. Draw again.")
    return figure


def file_name(text: str) -> str:
    """``text`` as a file's name of letters, digits, ``-``, ``.`` and ``_``; other texts get a hash to stay distinct."""
    safe = re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).lstrip(".")[:_LONGEST]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def save_figure(drawn: Figure | Panels, stem: Path) -> FigurePaths:
    """Write the figure that contains the Axes to ``stem.png`` and ``stem.svg``; return both paths.

    Figures of this package have a layout engine and keep their width; the frame of any other is fitted to its content.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from figures import draw_curves, example_table, save_figure
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_figure(draw_curves(example_table("skip_smol")), folder / "skip").svg.name
        'skip.svg'
    """
    figure = figure_of(drawn)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = FigurePaths(stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg"))
    frame = "tight" if figure.get_layout_engine() is None else None
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _save(figure, paths.png, bbox_inches=frame)
        _save(figure, paths.svg, bbox_inches=frame, metadata={"Date": None})
    _say_once(caught)
    return paths


def _save(figure: Figure, path: Path, **options: Any) -> None:
    """Write one file under a temporary name, then rename it, so that it is complete or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format=path.suffix[1:], **options)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _say_once(caught: Sequence[warnings.WarningMessage]) -> None:
    """Repeat warnings, but those of characters that no font has as one line, once in a process."""
    for warning in caught:
        if _NO_GLYPH in str(warning.message):
            if _NO_GLYPH not in _said:
                _said.add(_NO_GLYPH)
                print(_MISSING, file=sys.stderr)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
