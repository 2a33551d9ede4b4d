"""Accuracy of tuning plans by question family.

``draw_accuracy(table)`` takes the table of ``layerwise-finetune compare`` (``compare.csv``).
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import open_panels
from figures.plans.plan_marks import CONDITIONS, mark_plan
from figures.style import COLOURS, LINES, Panels, Width


def draw_accuracy(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Accuracy by question family, one panel for each condition, one mark for each plan.

    Bars are 95 % bootstrap intervals over scenes (or pictures) and seeds; titles give n. Dashed lines are the score of
    a guess, if the table has it. Families are in the order of the table, ``all`` last. The arguments are described in
    ``figures.panels``.

    Example:
        >>> from figures import draw_accuracy, example_table
        >>> [panel.get_title("left") for panel in draw_accuracy(example_table("accuracy_by_family_smol"))][:2]
        ['seen drawings  (n = 60 scenes)', 'unseen drawings  (n = 60 scenes)']
    """
    rows = table[table["metric"] == "accuracy"]
    if rows.empty:
        raise ValueError("table must hold accuracies, got none. Run layerwise-finetune compare first.")
    conditions = [str(condition) for condition in dict.fromkeys(rows["condition"])]
    plans = [str(plan) for plan in dict.fromkeys(rows["plan"])]
    columns = 5 if width == "two" else 2
    with open_panels(
        axes, conditions, width=width, columns=1, heights=1.7, extra=0.2 + 0.16 * -(-len(plans) // columns),
        title=title, legend=legend, legend_columns=columns,
    ) as opened:  # fmt: skip
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
    return opened.axes
