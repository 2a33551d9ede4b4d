"""One look for all figures: sizes, a palette in which a concept keeps its colour, and how a figure is saved.

The colours begin from those of Okabe and Ito. Some were moved so that any two that can stand in one figure stay apart
under deuteranopia and protanopia too (``tests/figures/test_style.py`` simulates both). What they tell, line style or
marker tells as well, so that a figure can be read in grey.
Source: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Width = Literal["one", "two"]
Panels = Axes | Sequence[Axes] | npt.NDArray[np.object_]
# Inches: one column of a paper with two, and both. Journals differ by a few millimetres around 89 and 183.
WIDTHS: dict[str, float] = {"one": 3.5, "two": 7.2}

# concept -> colour, the same in every figure
COLOURS = {
    "score": "#0072B2",
    "transfer": "#C85C00",
    "control": "#2EAB6E",
    "random_init": "#EC9DD1",
    "pixels": "#EFA60B",
    "chance": "#333333",
    "muted": "#7C7E85",
    "clean": "#2EAB6E",
    "corrupt": "#C85C00",
    "undefined": "#DDDDDD",
}
# concept -> line style and marker: no two that can stand in one figure have both in common
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
OPEN = frozenset({"transfer"})  # concepts whose markers are white inside, since small shapes look alike
# For curves whose concept has no colour of its own: in this order, from the first, each with its marker.
SERIES = ("#0072B2", "#EFA60B", "#CC79A7", "#35C3FA", "#333333", "#844F28")
SERIES_MARKERS = ("o", "s", "^", "D", "v", "X")
# For fractions and effects, always with a symmetric range around 0: red above, blue below, white at none.
DIVERGING = "RdBu_r"
# For probabilities, from 0 to 1: lightness rises evenly, so it reads the same for colour-blind readers and in grey.
SEQUENTIAL = "cividis"

# plan -> colour; what it shares with other figures keeps its meaning there
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
}

_SETTINGS: dict[Any, Any] = {  # keys of matplotlib's rcParams
    "font.size": 8.0,
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
    "svg.hashsalt": "laccolith",  # element ids in the file do not change from run to run
    "svg.fonttype": "none",
}


class FigurePaths(NamedTuple):
    """Where a figure was saved, once to look at and once to print."""

    png: Path
    svg: Path


@contextmanager
def style() -> Iterator[None]:
    """The look of this project inside the block, the reader's own outside.

    A notebook's backend becomes interactive with the first figure; that stays, or later figures would not be shown.
    """
    interactive = mpl.is_interactive()
    try:
        with mpl.rc_context(), sns.axes_style("ticks"), mpl.rc_context(_SETTINGS):
            try:
                yield
            finally:
                interactive = mpl.is_interactive()
    finally:
        mpl.interactive(interactive)


def plan_colour(plan: str) -> str:
    """The colour of a plan in all figures; tuned models that were scored beside the plans are dark."""
    kinds = {"LoRA": COLOURS["random_init"], "reference ": COLOURS["chance"]}
    other = next((colour for kind, colour in kinds.items() if plan.startswith(kind)), COLOURS["control"])
    return PLAN_COLOURS.get(plan, other)


def plan_marker(plan: str) -> str:
    """The marker of a plan in all figures; plans of one colour differ by it."""
    return PLAN_MARKERS.get(plan, "d")


def figure_of(drawn: Figure | Panels) -> Figure:
    """The figure that the Axes stand in, for instance to save or to close it."""
    if isinstance(drawn, Figure):
        return drawn
    first = drawn if isinstance(drawn, Axes) else next(iter(np.asarray(drawn, dtype=object).flat))
    figure = first.get_figure(root=True)
    if figure is None:
        raise ValueError("drawn must stand in a figure, got Axes that were removed from theirs. Draw again.")
    return figure


def save_figure(drawn: Figure | Panels, stem: Path) -> FigurePaths:
    """Writes ``stem.png`` and ``stem.svg``: the whole figure that the Axes stand in.

    A figure that lays itself out, as all of this project do, is as wide as it says; of another one everything that was
    drawn is put inside the frame.
    """
    figure = figure_of(drawn)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = FigurePaths(stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg"))
    frame = "tight" if figure.get_layout_engine() is None else None
    with mpl.rc_context(_SETTINGS):
        figure.savefig(paths.png, bbox_inches=frame)
        figure.savefig(paths.svg, bbox_inches=frame, metadata={"Date": None})
    return paths
