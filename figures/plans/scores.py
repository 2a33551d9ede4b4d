"""Scores of tuning plans: accuracy by question family, and retention, the share of full tuning's score.

Both functions take the table of ``layerwise-finetune compare`` (``compare.csv``).
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.panels import open_panels
from figures.plans.plan_marks import CONDITIONS, mark_full, mark_plan
from figures.style import COLOURS, LINES, Panels, Width, plan_colour

_FAR, _NEAR = 0.5, 0.65


def draw_accuracy(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Accuracy by question family, one panel for each condition, one mark for each plan.

    Bars are 95 % intervals over scenes (or pictures) and seeds; titles give n. Dashed lines are the score of
    a random guess, if the table has it. Families are in the order of the table, ``all`` last. The arguments are
    described in ``figures.panels``.

    Example:
        >>> from figures import draw_accuracy, example_table
        >>> [panel.get_title("left") for panel in draw_accuracy(example_table("accuracy_by_family_smol"))][:2]
        ['seen drawings  (n = 60 scenes)', 'unseen drawings  (n = 60 scenes)']
    """
    rows = table[table["metric"] == "accuracy"]
    if rows.empty:
        raise ValueError("table must contain accuracies, got none. Run layerwise-finetune compare.")
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


def draw_retention(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
) -> list[Axes]:
    """Retention by plan over all families: its score over full tuning's (dashed, at 1), one panel for each condition.

    Bars are 95 % intervals of the ratio; scenes and seeds are resampled jointly for both scores. In the last panel,
    ordinary text, they are the range over seeds. If all other plans retain about two thirds or more, a plan that
    retains less than half is written as a number at the edge, which leaves room to separate the others. The arguments
    are described in ``figures.panels``.

    Example:
        >>> from figures import draw_retention, example_table
        >>> [panel.get_title("left") for panel in draw_retention(example_table("retention_smol"))][:2]
        ['seen drawings', 'unseen drawings']
    """
    rows = table[(table["family"] == "all") | (table["condition"] == "passage")]
    if rows.empty:
        raise ValueError("table must contain retention over all families, got none. Run layerwise-finetune compare.")
    conditions = [str(condition) for condition in dict.fromkeys(rows["condition"])]
    plans = [str(plan) for plan in dict.fromkeys(rows["plan"])][::-1]
    with open_panels(
        axes, conditions, width=width, columns=4 if width == "two" else 1, heights=0.18 * len(plans) + 0.55, extra=0.2,
        sharey=True, title=title,
    ) as opened:  # fmt: skip
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
            panel.set_ylim(-0.6, len(plans) - 0.4)  # room for the markers of the first and last plan
            panel.set_title(CONDITIONS.get(condition, condition), loc="left")
            panel.set_xlabel(f"{'probability' if condition == 'passage' else 'score'}, relative to full")
    return opened.axes


def _beyond(rows: pd.DataFrame) -> set[str]:
    """Plans whose scores are too low to be drawn on the scale of the others; ``rows`` has one row for each plan."""
    far = rows["upper"] < _FAR
    others = rows.loc[~far, "lower"].dropna()
    return {str(plan) for plan in rows.index[far]} if len(others) and (others >= _NEAR).all() else set()
