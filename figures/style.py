"""One look for all figures: a palette in which a concept keeps its colour, and how a figure is saved.

The colours are those of Okabe and Ito, which stay apart for colour-blind readers and, by lightness, in grey.
Source: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

# concept -> colour, the same in every figure
COLOURS = {
    "score": "#0072B2",
    "transfer": "#D55E00",
    "control": "#009E73",
    "random_init": "#CC79A7",
    "pixels": "#E69F00",
    "chance": "#333333",
    "muted": "#8C8C8C",
    "clean": "#009E73",
    "corrupt": "#D55E00",
    "undefined": "#DDDDDD",
}
# For curves whose concept has no colour of its own: in this order, from the first.
SERIES = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#333333", "#B8A900")
# For fractions and effects, always with a symmetric range around 0: red above, blue below, white at none.
DIVERGING = "RdBu_r"
_SETTINGS: dict[Any, Any] = {  # keys of matplotlib's rcParams
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 110.0,
    "savefig.dpi": 160.0,
    "svg.hashsalt": "laccolith",  # element ids in the file do not change from run to run
    "svg.fonttype": "none",
}


class FigurePaths(NamedTuple):
    """Where a figure was saved, once to look at and once to print."""

    png: Path
    svg: Path


@contextmanager
def style() -> Iterator[None]:
    """The look of this project inside the block, the reader's own outside."""
    with mpl.rc_context(), sns.axes_style("ticks"), mpl.rc_context(_SETTINGS):
        yield


def save_figure(figure: Figure, stem: Path) -> FigurePaths:
    """Writes ``stem.png`` and ``stem.svg``, with everything that was drawn inside the frame."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = FigurePaths(stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg"))
    with mpl.rc_context(_SETTINGS):
        figure.savefig(paths.png, bbox_inches="tight")
        figure.savefig(paths.svg, bbox_inches="tight", metadata={"Date": None})
    return paths
