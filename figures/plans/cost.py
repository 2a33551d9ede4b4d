"""The cost of a training step of each plan, alone and against the plan's retention.

``draw_cost_retention(table)`` takes the table of ``layerwise-finetune compare`` (``compare.csv``),
``draw_cost_ratios(record)`` the plans in a record of ``benchmarks/tuning_cost.py``.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import open_panels
from figures.plans.plan_marks import CONDITIONS, mark_full, mark_plan
from figures.style import COLOURS, Panels, Width

Cost = Literal["flops_ratio", "step_time_ratio", "closed_form_ratio"]
_COSTS = {
    "flops_ratio": "operations of a step, relative to full tuning",
    "step_time_ratio": "time of a step, relative to full tuning",
    "closed_form_ratio": "operations by closed form, relative to full tuning",
}
_APART = 0.022  # distance between marks, as a share of the range of costs: a mark is about 0.02 wide
_KINDS = (
    ("closed_form_ratio", "closed form", COLOURS["muted"], "s"),
    ("flops_ratio", "operations counted", COLOURS["control"], "^"),
    ("step_time_ratio", "step time (bar: quartiles)", COLOURS["score"], "o"),
)


def draw_cost_retention(
    table: pd.DataFrame,
    *,
    costs: Sequence[Cost] = ("flops_ratio", "step_time_ratio"),
    condition: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Retention against cost, both relative to full tuning, one panel for each cost; the dashed line is full tuning.

    Every plan has one colour and shape; plans of nearly the same cost stand side by side around it. Bars are 95 %
    paired intervals of retention over scenes and seeds. Plans that were not timed, and the start without tuning, are
    left out.

    - ``table``: The table of a comparison.
    - ``costs``: Columns of cost; those without a value are left out.
    - ``condition``: Condition of the scores; by default the table's first (seen drawings, if scenes were scored).

    The other arguments are described in ``figures.panels``.

    Example:
        >>> from figures import draw_cost_retention, example_table
        >>> [panel.get_xlabel() for panel in draw_cost_retention(example_table("cost_retention_smol"))]
        ['operations of a step, relative to full tuning', 'time of a step, relative to full tuning']
    """
    condition = condition or str(next(iter(table["condition"]), ""))
    rows = _retained(table, condition)
    shown = [cost for cost in costs if cost in rows and rows[cost].notna().any()]
    if not shown:
        raise ValueError(
            f"table must contain a cost and a retention under condition {condition!r}, got none. "
            "Run layerwise-finetune compare with --timing-rounds of 1 or more."
        )
    per_line = 5 if width == "two" else 2
    with open_panels(
        axes, shown, width=width, columns=len(shown) if width == "two" else 1, heights=2.3, sharey=True,
        extra=0.2 + 0.16 * -(-rows["plan"].nunique() // per_line), title=title, legend=legend, legend_columns=per_line,
    ) as opened:  # fmt: skip
        for number, (panel, cost) in enumerate(zip(opened.axes, shown, strict=True)):
            drawn = rows[rows[cost].notna()]
            places = side_by_side(drawn[cost].to_numpy(dtype=float))
            for row, place in zip(drawn.to_dict("records"), places, strict=True):
                bounds = pd.DataFrame([[row["lower"], row["upper"]]])
                mark_plan(panel, str(row["plan"]), [float(place)], [float(row["retention"])], bounds=bounds)
            mark_full(panel, along="y")
            panel.set_xlabel(_COSTS[cost])
            if number % opened.columns == 0 or not opened.own:
                panel.set_ylabel(f"retention ({CONDITIONS.get(condition, condition)})")
    return opened.axes


def side_by_side(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The costs, moved apart where marks would cover each other: by at most a few hundredths of the axis.

    Marks of a chain of neighbours keep their order and the mean of their costs.

    Example:
        >>> side_by_side(np.array([0.0, 0.5, 0.5, 1.0])).round(3).tolist()
        [0.0, 0.489, 0.511, 1.0]
    """
    order = np.argsort(costs, kind="stable")
    apart = _APART * float(np.ptp(costs))
    places = costs.astype(np.float64)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or costs[order[end]] - costs[order[end - 1]] >= apart:
            chain = order[start:end]
            steps = np.arange(len(chain)) - (len(chain) - 1) / 2
            if len(chain) > 1:
                places[chain] = costs[chain].mean() + apart * steps
            start = end
    return places


def has_costs(table: pd.DataFrame) -> bool:
    """True if a plan has both counted operations and a defined retention under the table's first condition."""
    return bool(_retained(table, str(table["condition"].iloc[0]))["flops_ratio"].notna().any())


def _retained(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    return table[(table["family"] == "all") & (table["condition"] == condition) & table["retention"].notna()]


def draw_cost_ratios(
    record: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """The cost of a training step of each plan relative to full tuning: closed form, operations counted, time measured.

    One panel for each value of ``checkpointing``. The bar of the time spans the quartiles of the steps, over the median
    of full tuning; no time is drawn if full tuning was not timed. ``record`` has the columns ``plan, checkpointing,
    closed_form_ratio, flops_ratio, step_time_ratio, time_low, time_high``. The other arguments are described in
    ``figures.panels``.

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
            panel.set_xlabel("cost of a step, relative to full tuning")
            panel.set_title(name, loc="left")
    return opened.axes
