"""Retention of tuning plans: what each keeps of full tuning's score.

``draw_retention(table)`` takes the table of ``layerwise-finetune compare`` (``compare.csv``) and nothing else.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import add_title, open_panels
from figures.plans.plan_marks import CONDITIONS, mark_full, mark_plan
from figures.style import Panels, Width, plan_colour, style

_FAR, _NEAR = 0.5, 0.65


def draw_retention(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
) -> list[Axes]:
    """Retention of every plan, one panel a condition: its score over full tuning's (1, dashed), all families together.

    Bars are 95 % intervals of the ratio, scenes and seeds resampled for both together; in the last panel, ordinary
    text, they are the range over seeds. Plans are named on the axis, so that there is no legend. Where all others keep
    about two thirds or more, a plan that keeps less than half is a number at the edge, so that the others can be told
    apart.

    Args:
        table: Of a comparison.
        title: Stands above all panels.
        axes: To draw into, one for each condition; None for a new figure.
        width: Of a new figure, in columns of a page.

    Returns:
        The panels, in the order of the conditions.

    Raises:
        ValueError: If the table holds no retention, or ``axes`` are not one for each condition.
    """
    rows = table[(table["family"] == "all") | (table["condition"] == "passage")]
    if rows.empty:
        raise ValueError("table must hold retention over all families, got none. Run layerwise-finetune compare first.")
    conditions = [str(condition) for condition in dict.fromkeys(rows["condition"])]
    plans = [str(plan) for plan in dict.fromkeys(rows["plan"])][::-1]
    with style():
        columns = 4 if width == "two" else 1
        lines = -(-len(conditions) // columns)
        opened = open_panels(
            axes, conditions, width=width, columns=columns, row_heights=[0.18 * len(plans) + 0.55] * lines, extra=0.2,
            sharey=True,
        )  # fmt: skip
        for panel, condition in zip(opened.axes, conditions, strict=True):
            own = rows[rows["condition"] == condition].set_index("plan").reindex(plans)
            beyond = _beyond(own)
            for place, (plan, value) in enumerate(zip(plans, own["retention"].to_numpy(dtype=float), strict=True)):
                if plan in beyond:
                    panel.text(
                        0.03, place, f"\N{LEFTWARDS ARROW} {value:.2f}", transform=panel.get_yaxis_transform(),
                        color=plan_colour(plan), va="center",
                    )  # fmt: skip
                elif not np.isnan(value):
                    bounds = own.loc[[plan], ["lower", "upper"]]
                    mark_plan(panel, plan, [float(value)], [place], bounds=bounds, along="x")
            mark_full(panel, along="x")
            panel.set_yticks(range(len(plans)), plans)
            panel.set_ylim(-0.6, len(plans) - 0.4)  # markers of the first and the last plan are whole
            panel.set_title(CONDITIONS.get(condition, condition), loc="left")
            panel.set_xlabel(f"{'probability' if condition == 'passage' else 'score'} / full tuning's")
        if title is not None:
            add_title(opened, title, title)
    return opened.axes


def _beyond(rows: pd.DataFrame) -> set[str]:
    """Plans that are too far below all others to be drawn on one scale with them; ``rows`` has one for each plan."""
    far = rows["upper"] < _FAR
    others = rows.loc[~far, "lower"].dropna()
    return {str(plan) for plan in rows.index[far]} if len(others) and (others >= _NEAR).all() else set()
