"""Accuracy of tuning plans by question family.

``draw_accuracy(table)`` takes the table of ``layerwise-finetune compare`` (``compare.csv``) and nothing else.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import add_legend, add_title, open_panels
from figures.plans.plan_marks import CONDITIONS, mark_plan
from figures.style import COLOURS, LINES, Panels, Width, style


def draw_accuracy(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Accuracy by question family, one panel a condition, one mark a plan.

    Bars are 95 % intervals, bootstrapped over scenes (pictures of a file) and seeds; n of them stand in the title.
    Dashed lines are what a guess gets, where the table says so. Families are in the order of the table, ``all`` last.

    Args:
        table: Of a comparison.
        title: Stands above all panels.
        axes: To draw into, one for each condition; None for a new figure.
        width: Of a new figure, in columns of a page.
        legend: Whether there is one.

    Returns:
        The panels, in the order of the conditions.

    Raises:
        ValueError: If the table holds no accuracy, or ``axes`` are not one for each condition.
    """
    rows = table[table["metric"] == "accuracy"]
    if rows.empty:
        raise ValueError("table must hold accuracies, got none. Run layerwise-finetune compare first.")
    conditions = [str(condition) for condition in dict.fromkeys(rows["condition"])]
    plans = [str(plan) for plan in dict.fromkeys(rows["plan"])]
    with style():
        opened = open_panels(
            axes, conditions, width=width, columns=1, row_heights=[1.7] * len(conditions),
            extra=0.2 + 0.16 * -(-len(plans) // (5 if width == "two" else 2)),
        )  # fmt: skip
        for panel, condition in zip(opened.axes, conditions, strict=True):
            here = rows[rows["condition"] == condition]
            families = list(dict.fromkeys(here["family"]))
            for index, plan in enumerate(plans):
                own = here[here["plan"] == plan].set_index("family").reindex(families)
                places = np.arange(len(families), dtype=float) + (index - (len(plans) - 1) / 2) * 0.8 / len(plans)
                scores = own["score"].to_numpy(dtype=float)
                mark_plan(panel, plan, places, scores, bounds=own[["score_lower", "score_upper"]])
            if "chance" in here:
                levels = here.groupby("family")["chance"].first().reindex(families).to_numpy(dtype=float)
                ends = np.arange(len(families))
                panel.hlines(
                    levels, ends - 0.45, ends + 0.45, color=COLOURS["chance"], linestyle=LINES["chance"][0],
                    linewidth=1.0, label="a guess", zorder=0,
                )  # fmt: skip
            panel.set_xticks(range(len(families)), families)
            if len(families) > (12 if width == "two" else 5):
                panel.tick_params(axis="x", labelrotation=40)
            panel.set_ylim(-0.02, 1.04)
            panel.set_ylabel("share of right answers")
            units = f"{int(here['n'].max())} scenes" if condition in CONDITIONS else str(int(here["n"].max()))
            panel.set_title(f"{CONDITIONS.get(condition, condition)}  (n = {units})", loc="left")
        if legend:
            add_legend(opened, width=width, columns=5 if width == "two" else 2)
        if title is not None:
            add_title(opened, title, title)
    return opened.axes
