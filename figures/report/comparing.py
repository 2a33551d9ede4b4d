"""The report's scatter plots of plans: cost against retention, or cost against what token plans keep."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from figures.plans.plan_marks import CONDITIONS
from figures.plans.token_plans import marks_of
from figures.report.palette import colour_of
from figures.report.tables import plain_value
from figures.style import plan_colour

Json = dict[str, Any]
_COSTS = {
    "flops_ratio": "operations of a step, relative to full tuning",
    "step_time_ratio": "time of a step, relative to full tuning",
    "closed_form_ratio": "operations in closed form, relative to full tuning",
}
_TOKEN_COSTS = {
    "prefill_ratio": "operations of prefill, relative to the full model",
    "prefill_time_ratio": "time of prefill, relative to the full model",
    "cache_ratio": "cache, relative to the full model",
    "decode_ratio": "operations of a new token, relative to the full model",
    "decode_time_ratio": "time of a new token, relative to the full model",
}


def cost_scatter(table: pd.DataFrame) -> Json | None:
    """Retention against cost, one point for each plan; None if nothing was timed or counted."""
    overall = table[(table["family"] == "all") | (table["condition"] == "passage")]
    costs = {name: label for name, label in _COSTS.items() if name in overall and overall[name].notna().any()}
    choices = []
    for condition in dict.fromkeys(overall["condition"]) if costs else ():
        rows = overall[(overall["condition"] == condition) & overall["retention"].notna()]
        if not rows.empty:
            first = rows.iloc[0]
            about = _interval(rows, "lower")
            seeds = f", seeds: {int(rows['seeds'].max())}" if "seeds" in rows else ""
            interval = f"{about}; n = {int(first['n'])}{seeds}"
            points = [_point(row, list(costs)) for row in rows.to_dict("records")]
            label = CONDITIONS.get(str(condition), str(condition))
            choices.append({"label": label, "interval": interval, "points": points})
    if not choices:
        return None
    return {
        "type": "scatter",
        "title": "Cost against retention",
        "caption": "Retention: a plan's score divided by that of full tuning. Cost: of one training step, divided by "
        "that of full tuning in the same process. Plans whose cost was not measured, or whose retention is undefined, "
        "are in the table only.",
        "choose": "scored on",
        "y": "retention",
        "full": "full tuning",
        "costs": [{"name": name, "label": label} for name, label in costs.items()],
        "choices": choices,
    }


def _interval(rows: pd.DataFrame, lower: str) -> str:
    """What the intervals of plans are about; the plan that others are compared with has none."""
    if "interval" not in rows:
        return "95 % interval"  # a table from before this column
    drawn = rows[rows[lower].notna()]
    return str((rows if drawn.empty else drawn)["interval"].iloc[0])


def _point(row: Mapping[Any, Any], costs: list[str]) -> Json:
    return {
        "label": str(row["plan"]),
        "colour": colour_of(plan_colour(str(row["plan"]))),
        "x": {name: plain_value(row[name]) for name in costs},
        "y": [plain_value(row[name]) for name in ("retention", "lower", "upper")],
        "n": int(row["n"]),
    }


def token_plan_scatter(table: pd.DataFrame) -> Json | None:
    """What token plans keep against what they cost, one point for each plan; None if no accuracy can be compared."""
    costs = {name: label for name, label in _TOKEN_COSTS.items() if name in table and table[name].notna().any()}
    marks = marks_of([str(plan) for plan in dict.fromkeys(table["plan"])])
    choices = []
    for split in dict.fromkeys(table["split"]):
        rows = table[(table["split"] == split) & table["kept"].notna()]
        if rows.empty:
            continue
        points = [
            {
                "label": str(row["plan"]), "colour": colour_of(marks[str(row["plan"])][0]),
                "x": {name: plain_value(row[name]) for name in costs},
                "y": [plain_value(row[name]) for name in ("kept", "kept_lower", "kept_upper")], "n": int(row["n"]),
            }
            for row in rows.to_dict("records")
        ]  # fmt: skip
        choices.append({"label": str(split), "interval": _interval(rows, "kept_lower"), "points": points})
    if not choices:
        return None
    return {
        "type": "scatter",
        "title": "Cost against what is kept",
        "caption": "Accuracy of generated answers relative to the full model, on the same questions. Compare a "
        "plan with one of equal cost that drops image tokens at random.",
        "choose": "questions",
        "y": "accuracy, relative to the full model",
        "full": "the full model",
        "costs": [{"name": name, "label": label} for name, label in costs.items()],
        "choices": choices,
    }
