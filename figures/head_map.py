"""Effect of single attention heads, by layer and head.

``draw_head_map(results)`` takes the table of a patch sweep over heads (``docs/results.md``).
"""

import pandas as pd
from matplotlib.axes import Axes

from figures.effect_grid import draw_grid
from figures.style import Panels, Width


def draw_head_map(
    results: pd.DataFrame,
    *,
    metric: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Effect by layer and head (both from 0), one panel for each activation and token group.

    Read as ``figures.token_map.draw_token_map``, and its arguments are the same. Rows without a head are left out.

    Returns:
        The panels, in the order of the table.

    Raises:
        ValueError: If no row has a head, or ``axes`` are not one for each panel.
    """
    of_heads = results[results["head"].notna() & (results["head"].astype(str) != "")]
    return draw_grid(
        of_heads, "head", ("part", "name", "tokens"), metric=metric, title=title, axes=axes, width=width,
        legend=legend, row_height=0.15,
    )  # fmt: skip
