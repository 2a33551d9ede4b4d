"""Recovered fraction by layer and token group.

``draw_token_map(results)`` takes the table of a patch sweep (``docs/results.md``).
"""

import pandas as pd
from matplotlib.axes import Axes

from figures.effect_grid import draw_grid
from figures.style import Panels, Width


def draw_token_map(
    results: pd.DataFrame,
    *,
    metric: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Effect by layer (from 0) and token group, one panel for each activation that was changed.

    Red: the recovered (lost) fraction of the difference between clean and corrupt run; blue: change the other way. A
    dot: p, adjusted over the run, is below 0.05; a minus sign instead: so it is, and the effect is negative. Grey:
    undefined, since clean and corrupt do not differ. n: in the title.

    Args:
        results: The table of a patch sweep.
        metric: Which; the first of the table where it is None.
        title: Stands above all panels.
        axes: To draw into, one for each activation; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is a bar that explains the colours.

    Returns:
        The panels, in the order of the table.

    Raises:
        ValueError: If the table has no such row, or ``axes`` are not one for each activation.
    """
    return draw_grid(
        results, "tokens", ("part", "name"), metric=metric, title=title, axes=axes, width=width, legend=legend,
        row_height=0.24,
    )  # fmt: skip
