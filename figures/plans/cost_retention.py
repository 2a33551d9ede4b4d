"""What a plan costs against what it keeps.

``draw_cost_retention(table)`` takes the table of ``layerwise-finetune compare`` (``compare.csv``) and nothing else.
"""

from collections.abc import Sequence
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes

from figures.panels import add_legend, add_title, open_panels
from figures.plans.plan_marks import CONDITIONS, mark_full, mark_plan
from figures.style import Panels, Width, style

Cost = Literal["flops_ratio", "step_time_ratio", "closed_form_ratio"]
_COSTS = {
    "flops_ratio": "operations of a step / full tuning's",
    "step_time_ratio": "time of a step / full tuning's",
    "closed_form_ratio": "operations by closed form / full tuning's",
}


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
    """Retention against cost, both relative to full tuning (dashed: as full tuning), one panel for each cost.

    Every plan has one colour and shape. Bars are 95 % paired intervals of retention over scenes and seeds. Plans that
    were not timed, and no tuning at all, are left out.

    Args:
        table: Of a comparison.
        costs: Columns of cost; panels without any value are not drawn.
        condition: Whose retention; the table's first (seen drawings, where scenes were scored) where it is None.
        title: Stands above all panels.
        axes: To draw into, one for each cost; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is one.

    Returns:
        The panels, in the order of the costs.

    Raises:
        ValueError: If nothing was timed under that condition, or ``axes`` are not one for each cost.
    """
    condition = condition or str(next(iter(table["condition"]), ""))
    rows = table[(table["family"] == "all") & (table["condition"] == condition) & table["retention"].notna()]
    shown = [cost for cost in costs if cost in rows and rows[cost].notna().any()]
    if not shown:
        raise ValueError(
            f"table must hold a cost and a retention under condition {condition!r}, got none. "
            "Run layerwise-finetune compare with --timing-rounds of 1 or more."
        )
    with style():
        columns = len(shown) if width == "two" else 1
        lines = -(-len(shown) // columns)
        plans = rows["plan"].nunique()
        opened = open_panels(
            axes, shown, width=width, columns=columns, row_heights=[2.3] * lines, sharey=True,
            extra=0.2 + 0.16 * -(-plans // (5 if width == "two" else 2)),
        )  # fmt: skip
        for number, (panel, cost) in enumerate(zip(opened.axes, shown, strict=True)):
            for row in rows[rows[cost].notna()].to_dict("records"):
                bounds = pd.DataFrame([[row["lower"], row["upper"]]])
                mark_plan(panel, str(row["plan"]), [float(row[cost])], [float(row["retention"])], bounds=bounds)
            mark_full(panel, along="y")
            panel.set_xlabel(_COSTS[cost])
            if number % opened.columns == 0 or not opened.own:
                panel.set_ylabel(f"retention ({CONDITIONS.get(condition, condition)})")
        if legend:
            add_legend(opened, width=width, columns=5 if width == "two" else 2)
        if title is not None:
            add_title(opened, title, title)
    return opened.axes
