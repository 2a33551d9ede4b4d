"""The cost of a training step of each plan: closed form, operations counted, time measured.

``draw_cost_ratios(record)`` takes the plans of a record of ``benchmarks/tuning_cost.py``.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import open_panels
from figures.plans.plan_marks import mark_full
from figures.style import COLOURS, Panels, Width

_KINDS = (
    ("closed_form_ratio", "closed form", COLOURS["muted"], "s"),
    ("flops_ratio", "operations counted", COLOURS["control"], "^"),
    ("step_time_ratio", "step time (bar: quartiles)", COLOURS["score"], "o"),
)


def draw_cost_ratios(
    record: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """The cost of a training step of each plan relative to full tuning: closed form, operations counted, time measured.

    One panel for each value of ``checkpointing``. The bar of the time runs between the quartiles of the steps, over the
    median of full tuning; no time is drawn if full tuning was not timed. ``record`` has the columns ``plan,
    checkpointing, closed_form_ratio, flops_ratio, step_time_ratio, time_low, time_high``. The other arguments are
    described in ``figures.panels``.

    Example:
        >>> from figures import draw_cost_ratios, example_table
        >>> [panel.get_title("left") for panel in draw_cost_ratios(example_table("cost_ratios_wide"))]
        ['without checkpointing', 'with checkpointing']
    """
    modes = list(dict.fromkeys(record["checkpointing"]))
    titles = ["with checkpointing" if mode else "without checkpointing" for mode in modes]
    plans = [str(plan) for plan in dict.fromkeys(record["plan"])][::-1]
    with open_panels(
        axes, titles, width=width, columns=len(modes) if width == "two" else 1, heights=0.24 * len(plans) + 0.65,
        extra=0.45, sharey=True, title=title, legend=legend,
    ) as opened:  # fmt: skip
        for panel, mode, name in zip(opened.axes, modes, titles, strict=True):
            rows = record[record["checkpointing"] == mode].set_index("plan").reindex(plans)
            for offset, (column, label, colour, marker) in zip((0.18, 0.0, -0.18), _KINDS, strict=True):
                values = rows[column].to_numpy(dtype=float)
                low, high = (rows[bound].to_numpy(dtype=float) for bound in ("time_low", "time_high"))
                span = np.clip(np.nan_to_num([values - low, high - values]), 0, None)
                panel.errorbar(
                    values, np.arange(len(plans)) + offset, xerr=span if column == "step_time_ratio" else None,
                    linestyle="", marker=marker, color=colour, markersize=3.6, elinewidth=1.0, label=label,
                )  # fmt: skip
            mark_full(panel, along="x")
            panel.set_yticks(range(len(plans)), plans)
            panel.set_xlabel("cost of a step / full tuning's")
            panel.set_title(name, loc="left")
    return opened.axes
