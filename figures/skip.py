"""What is lost where a group of tokens is no longer updated: skip curves.

``draw_skip(results)`` takes the table of a patch sweep with ``--op skip`` (``docs/results.md``).
"""

import pandas as pd
from matplotlib.axes import Axes

from figures.curves import draw_curves
from figures.style import Panels, Width


def draw_skip(
    results: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """A metric of the clean run by the layer that a group of tokens skips, or from which on it does.

    One panel for each metric, one curve for each group. Its band is the 95 % bootstrap interval of the mean over n
    pairs. Solid line: mean of the clean run; dashed: of the corrupt run. Arguments and errors are those of
    ``figures.knockout.draw_knockout``.
    """
    return draw_curves(results[results["op"] == "skip"], title=title, axes=axes, width=width, legend=legend)
