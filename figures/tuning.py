"""Tuning plans side by side: accuracy by question family, retention, cost against retention, and what each plan trains.

Every function takes the table of ``layerwise-finetune compare`` (``compare.csv``) and nothing else.
"""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from figures.style import COLOURS, style

# plan -> colour; what it shares with other figures keeps its meaning there
PLAN_COLOURS = {
    "full": COLOURS["score"],
    "middle band": COLOURS["transfer"],
    "start": COLOURS["muted"],
    "projector only": COLOURS["pixels"],
}
_OTHER = COLOURS["control"]
_EMPTY = "#C8C8C8"
_LOW_RANK = COLOURS["random_init"]
_CONDITIONS = {"seen": "seen drawings", "unseen": "unseen drawings", "text": "text alone", "passage": "ordinary text"}


def plan_colour(plan: str) -> str:
    """The colour of a plan in all figures."""
    return PLAN_COLOURS.get(plan, _LOW_RANK if plan.startswith("LoRA") else _OTHER)


def draw_accuracy(table: pd.DataFrame) -> Figure:
    """Accuracy by question family, one panel a condition, one mark a plan.

    Bars are 95 % intervals, bootstrapped over scenes and seeds; n scenes stand in the title. Families are in the order
    of the table, ``all`` last.

    Raises:
        ValueError: If the table holds no accuracy.
    """
    rows = table[table["metric"] == "accuracy"]
    if rows.empty:
        raise ValueError("table must hold accuracies, got none. Run layerwise-finetune compare first.")
    conditions = list(dict.fromkeys(rows["condition"]))
    families = list(dict.fromkeys(rows["family"]))
    plans = list(dict.fromkeys(rows["plan"]))
    with style():
        figure, axes = plt.subplots(
            len(conditions), 1, figsize=(9.5, 2.6 * len(conditions) + 1.2), squeeze=False, layout="constrained"
        )
        for panel, condition in zip(axes.flat, conditions, strict=True):
            here = rows[rows["condition"] == condition]
            for index, plan in enumerate(plans):
                own = here[here["plan"] == plan].set_index("family").reindex(families)
                places = np.arange(len(families), dtype=float) + (index - (len(plans) - 1) / 2) * 0.8 / len(plans)
                _marks(panel, places, own, "score", ("score_lower", "score_upper"), plan)
            panel.set_xticks(range(len(families)), families)
            panel.set_ylim(-0.02, 1.04)
            panel.set_ylabel("share of right answers")
            panel.set_title(f"{_CONDITIONS.get(condition, condition)}  (n = {int(here['n'].max())} scenes)", loc="left")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def draw_retention(table: pd.DataFrame) -> Figure:
    """Retention of every plan, one panel a condition: its score over full tuning's (1, dashed), all families together.

    Bars are 95 % intervals of the ratio, scenes and seeds resampled for both together; in the last panel, ordinary
    text, they are the range over seeds.
    """
    rows = table[(table["family"] == "all") | (table["condition"] == "passage")]
    conditions = list(dict.fromkeys(rows["condition"]))
    plans = list(dict.fromkeys(rows["plan"]))[::-1]
    with style():
        figure, axes = plt.subplots(
            1, len(conditions), figsize=(2.6 * len(conditions) + 2.2, 0.34 * len(plans) + 1.5), sharey=True,
            squeeze=False, layout="constrained",
        )  # fmt: skip
        for panel, condition in zip(axes.flat, conditions, strict=True):
            own = rows[rows["condition"] == condition].set_index("plan").reindex(plans)
            for place, plan in enumerate(plans):
                value, low, high = (float(own.loc[plan, name]) for name in ("retention", "lower", "upper"))
                if np.isnan(value):
                    continue
                span = [[max(0.0, value - low)], [max(0.0, high - value)]]
                panel.errorbar([value], [place], xerr=span, fmt="o", color=plan_colour(plan), markersize=4)
            panel.axvline(1.0, color=COLOURS["chance"], linestyle=(0, (5, 3)), linewidth=1.0)
            panel.set_yticks(range(len(plans)), plans)
            panel.set_title(_CONDITIONS.get(condition, condition), loc="left")
            panel.set_xlabel("score / full tuning's")
    return figure


def draw_cost(table: pd.DataFrame) -> Figure:
    """Retention on seen drawings against cost: floating-point operations of a step on the left, its time on the right.

    Cost is relative to full tuning in the same process. Bars are 95 % paired intervals of retention.
    """
    rows = table[(table["family"] == "all") & (table["condition"] == "seen") & table["flops_ratio"].notna()]
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.0), sharey=True, layout="constrained")
        for panel, (column, label) in zip(
            axes, (("flops_ratio", "operations / full tuning's"), ("step_time_ratio", "step time / full tuning's")),
            strict=True,
        ):  # fmt: skip
            for row in rows.to_dict("records"):
                if pd.isna(row[column]) or pd.isna(row["retention"]):
                    continue
                span = [[max(0.0, row["retention"] - row["lower"])], [max(0.0, row["upper"] - row["retention"])]]
                colour = plan_colour(str(row["plan"]))
                panel.errorbar([row[column]], [row["retention"]], yerr=span, fmt="o", color=colour, markersize=5)
                panel.annotate(
                    str(row["plan"]), (row[column], row["retention"]), xytext=(5, 3), textcoords="offset points",
                    fontsize=7.5, color=colour,
                )  # fmt: skip
            panel.axhline(1.0, color=COLOURS["chance"], linestyle=(0, (5, 3)), linewidth=1.0)
            panel.set_xlabel(label)
        axes[0].set_ylabel("retention (seen drawings)")
    return figure


def draw_cost_ratios(record: pd.DataFrame) -> Figure:
    """What a training step of each plan costs relative to full tuning: closed form, operations counted, time measured.

    One panel for each value of ``checkpointing``. The bar of the time is the range between the quartiles of the steps,
    over the median of full tuning's; where full tuning was not timed, no time is drawn.

    Args:
        record: Columns ``plan, checkpointing, closed_form_ratio, flops_ratio, step_time_ratio, time_low, time_high``.
    """
    modes = list(dict.fromkeys(record["checkpointing"]))
    plans = list(dict.fromkeys(record["plan"]))[::-1]
    kinds = (
        ("closed_form_ratio", "closed form", COLOURS["muted"], "s"),
        ("flops_ratio", "operations counted", COLOURS["control"], "^"),
        ("step_time_ratio", "step time", COLOURS["score"], "o"),
    )
    with style():
        figure, axes = plt.subplots(
            1, len(modes), figsize=(4.2 * len(modes) + 1.6, 0.36 * len(plans) + 1.7), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for panel, mode in zip(axes.flat, modes, strict=True):
            rows = record[record["checkpointing"] == mode].set_index("plan").reindex(plans)
            for offset, (column, label, colour, marker) in zip((0.18, 0.0, -0.18), kinds, strict=True):
                values = rows[column].to_numpy(dtype=float)
                low, high = (rows[name].to_numpy(dtype=float) for name in ("time_low", "time_high"))
                span = np.clip(np.nan_to_num([values - low, high - values]), 0, None)
                panel.errorbar(
                    values, np.arange(len(plans)) + offset, xerr=span if column == "step_time_ratio" else None,
                    fmt=marker, color=colour, markersize=4, label=label,
                )  # fmt: skip
            panel.axvline(1.0, color=COLOURS["chance"], linestyle=(0, (5, 3)), linewidth=1.0)
            panel.set_yticks(range(len(plans)), plans)
            panel.set_xlabel("cost of a step / full tuning's")
            panel.set_title("with checkpointing" if mode else "without checkpointing", loc="left")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def draw_plans(table: pd.DataFrame) -> Figure:
    """What each plan trains: filled are blocks with full weights, hatched those with LoRA, beside them the other parts.

    Blocks count from 0 and stand in the order of the forward pass.
    """
    plans = table.drop_duplicates("plan").set_index("plan")
    plans = plans[plans["layers"].fillna("") != ""]
    parts = ["vision", "projector", "embeddings"]
    after = ["final_norm", "lm_head"]
    n_layers = _depth(plans["layers"].astype(str).tolist())
    with style():
        figure, panel = plt.subplots(figsize=(0.24 * n_layers + 4.0, 0.34 * len(plans) + 1.4), layout="constrained")
        left = len(parts) + 0.6
        right = left + n_layers + 0.6
        for place, (plan, row) in enumerate(reversed(list(plans.iterrows()))):
            trained = {part.partition(":")[0] for part in str(row["train"] or "").split(",")}
            if str(plan) == "start":
                trained = set()
            blocks = _blocks(str(row["layers"]), n_layers)
            colour = plan_colour(str(plan))
            cells: list[tuple[float, bool, bool]] = [
                (index, part in trained, False) for index, part in enumerate(parts)
            ]
            cells += [(left + layer, layer in blocks, str(row["method"]) == "lora") for layer in range(n_layers)]
            cells += [(right + index, part in trained, False) for index, part in enumerate(after)]
            for x, on, low_rank in cells:
                filled, hatch = on and not low_rank, "////" if on and low_rank else None
                edge = colour if on else _EMPTY
                box = Rectangle((x, place - 0.36), 0.86, 0.72, facecolor=colour if filled else "none", edgecolor=edge)
                box.set(hatch=hatch, linewidth=0.7)
                panel.add_patch(box)
        shown = range(0, n_layers, max(1, n_layers // 8))
        places = [*range(len(parts)), *(left + i for i in shown), *(right + i for i in range(len(after)))]
        panel.set_xticks([place + 0.43 for place in places], [*parts, *(str(i) for i in shown), *after])
        for text in panel.get_xticklabels():
            if not text.get_text().isdigit():
                text.set_rotation(50)
                text.set_horizontalalignment("right")
                text.set_rotation_mode("anchor")
        panel.set_yticks(range(len(plans)), list(plans.index)[::-1])
        panel.set_xlim(-0.3, right + len(after) + 0.2)
        panel.set_ylim(-0.7, len(plans) - 0.3)
        panel.set_xlabel("parts of the model; blocks of the language model by number, from 0")
        panel.tick_params(length=0)
    return figure


def _marks(
    panel: Axes, places: NDArray[np.float64], rows: pd.DataFrame, column: str,
    bounds: tuple[str, str], plan: str,
) -> None:  # fmt: skip
    values = rows[column].to_numpy(dtype=float)
    low, high = (rows[name].to_numpy(dtype=float) for name in bounds)
    span = np.clip([values - low, high - values], 0, None)
    panel.errorbar(
        places, values, yerr=span, fmt="o", markersize=3.2, linewidth=1.0, color=plan_colour(plan), label=plan,
        alpha=0.9 if plan in PLAN_COLOURS else 0.65,
    )  # fmt: skip


def _depth(specs: list[str]) -> int:
    """How many blocks the model has, from the largest number in the plans' own lists of layers."""
    numbers = [int(number) for spec in specs for number in re.findall(r"\d+", spec)]
    return max(numbers, default=0) + 1


def _blocks(spec: str, n_layers: int) -> set[int]:
    """The layers of a list of numbers and ranges."""
    if spec in ("none", ""):
        return set()
    if spec == "all":
        return set(range(n_layers))
    found: set[int] = set()
    for part in spec.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
