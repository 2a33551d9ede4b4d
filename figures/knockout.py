"""What is lost where attention between two groups of tokens is cut: knockout curves.

``draw_knockout(results)`` takes the table of a patch sweep with ``--op knockout`` (``docs/results.md``).
"""

import pandas as pd
from matplotlib.axes import Axes

from figures.curves import draw_curves
from figures.style import Panels, Width


def draw_knockout(
    results: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """A metric of the clean run by the layer (from 0) around which attention is cut, one panel for each metric.

    One curve for each pair of groups, source → target: the target stops looking at the source. Its band is the 95 %
    bootstrap interval of the mean over n pairs. Solid line: mean of the clean run; dashed: of the corrupt run.

    Args:
        results: The table of a patch sweep.
        title: Stands above all panels.
        axes: To draw into, one for each metric; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is one.

    Returns:
        The panels, in the order of the metrics.

    Raises:
        ValueError: If no row is of a knockout in a layer, or ``axes`` are not one for each metric.
    """
    return draw_curves(results[results["op"] == "knockout"], title=title, axes=axes, width=width, legend=legend)
