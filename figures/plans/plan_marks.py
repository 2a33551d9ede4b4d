"""One mark with an interval for each tuning plan, and the names of conditions."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from figures.style import COLOURS, LINES, plan_colour, plan_marker

CONDITIONS = {
    "seen": "seen drawings",
    "unseen": "unseen drawings",
    "text": "caption in words",
    "passage": "ordinary text",
}
Values = Sequence[float] | Sequence[int] | npt.NDArray[np.float64]


def mark_plan(panel: Axes, plan: str, x: Values, y: Values, *, bounds: pd.DataFrame, along: str = "y") -> None:
    """Draw marks in the plan's colour and shape, with a bar between the two columns ``bounds``."""
    values = np.asarray(y if along == "y" else x, dtype=float)
    low, high = bounds.to_numpy(dtype=float).T
    span = np.clip([values - low, high - values], 0, None)  # rounding may put the value just outside its interval
    colour = plan_colour(plan)
    panel.errorbar(
        x, y, xerr=span if along == "x" else None, yerr=span if along == "y" else None, linestyle="",
        marker=plan_marker(plan), color=colour, markersize=4.0, markeredgecolor="#333333", markeredgewidth=0.4,
        elinewidth=1.0, label=plan,
    )  # fmt: skip


def mark_full(panel: Axes, *, along: str) -> None:
    """Draw the dashed line at 1, the value of full tuning."""
    draw = panel.axvline if along == "x" else panel.axhline
    draw(1.0, color=COLOURS["chance"], linestyle=LINES["chance"][0], linewidth=1.0, zorder=0)
