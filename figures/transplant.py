"""Which layers hold what a model learned: the answers of one model with layers of another.

``draw_transplant(results)`` takes the table of a patch sweep with ``--op transplant`` (``docs/results.md``).
"""

import pandas as pd
from matplotlib.axes import Axes

from figures.curves import draw_curves
from figures.style import Panels, Width


def draw_transplant(
    results: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """A metric of the recipient by the layer (from 0) whose window of layers is the donor's, one panel for each metric.

    The band is the 95 % bootstrap interval of the mean over n pairs. Solid line: mean of the donor; dashed: of the
    recipient without a transplant; both on the clean picture.

    Args:
        results: The table of a patch sweep.
        title: Stands above all panels.
        axes: To draw into, one for each metric; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is one.

    Returns:
        The panels, in the order of the metrics.

    Raises:
        ValueError: If no row is of a transplant of layers, or ``axes`` are not one for each metric.
    """
    return draw_curves(
        results[results["op"] == "transplant"], levels=("donor", "recipient"), curve="recipient with donor's layers",
        title=title, axes=axes, width=width, legend=legend,
    )  # fmt: skip
