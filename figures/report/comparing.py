"""The report's sections on tuning: cost against retention of several plans, or the loss and cost of one plan."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from figures.plans.plan_marks import CONDITIONS
from figures.read_run import read_json
from figures.report.curves import curve_panel, curves_section, drawn_values, number_axis, numbered_series
from figures.report.tables import plain_value
from figures.style import COLOURS, SERIES, plan_colour
from figures.token_plans import marks_of
from tasks.readers.parse import parse_json

Json = dict[str, Any]
_COSTS = {
    "flops_ratio": "operations of a step / full tuning's",
    "step_time_ratio": "step time / full tuning's",
    "closed_form_ratio": "closed form of the operations / full tuning's",
}
_TOKEN_COSTS = {
    "prefill_ratio": "operations of prefill / full model's",
    "prefill_time_ratio": "time of prefill / full model's",
    "cache_ratio": "cache / full model's",
    "decode_ratio": "operations of a new token / full model's",
    "decode_time_ratio": "time of a new token / full model's",
}
_CONCEPTS = {f"{colour}": f"s{number}" for number, colour in enumerate(SERIES)}
_CONCEPTS |= {colour: concept for concept, colour in reversed(COLOURS.items())}


def cost_scatter(table: pd.DataFrame) -> Json | None:
    """Retention against cost, one point for each plan; None if nothing was timed or counted."""
    overall = table[(table["family"] == "all") | (table["condition"] == "passage")]
    costs = {name: label for name, label in _COSTS.items() if name in overall and overall[name].notna().any()}
    choices = []
    for condition in dict.fromkeys(overall["condition"]) if costs else ():
        rows = overall[(overall["condition"] == condition) & overall["retention"].notna()]
        if not rows.empty:
            first = rows.iloc[0]
            about = first.get("interval", "95 % interval")  # a table from before this column
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
        "caption": "Retention: a plan's score over full tuning's. Cost: of one training step, over full tuning's in "
        "the same process. Plans whose cost was not measured, or whose retention is undefined, are in the table only.",
        "choose": "scored on",
        "y": "retention",
        "full": "full tuning",
        "costs": [{"name": name, "label": label} for name, label in costs.items()],
        "choices": choices,
    }


def _point(row: Mapping[Any, Any], costs: list[str]) -> Json:
    return {
        "label": str(row["plan"]),
        "colour": _CONCEPTS[plan_colour(str(row["plan"]))],
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
                "label": str(row["plan"]), "colour": _CONCEPTS.get(marks[str(row["plan"])][0], "s5"),
                "x": {name: plain_value(row[name]) for name in costs},
                "y": [plain_value(row[name]) for name in ("kept", "kept_lower", "kept_upper")], "n": int(row["n"]),
            }
            for row in rows.to_dict("records")
        ]  # fmt: skip
        choices.append({"label": str(split), "interval": str(rows["interval"].iloc[0]), "points": points})
    if not choices:
        return None
    return {
        "type": "scatter",
        "title": "Cost against what is kept",
        "caption": "Accuracy of generated answers relative to the full model, on the same questions. Compare a "
        "plan with one of equal cost that drops image tokens at random.",
        "choose": "questions",
        "y": "accuracy / full model's",
        "full": "the full model",
        "costs": [{"name": name, "label": label} for name, label in costs.items()],
        "choices": choices,
    }


def training_log(folder: Path) -> Json | None:
    """Loss by optimizer step; None if the run has no log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return None
    series: dict[str, list[Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        if not text.strip():
            continue
        line = parse_json(text)
        for name, value in line.items():
            if "loss" in name and "train_" not in name and isinstance(value, int | float):
                step = int(line["step"])
                series.setdefault(name, []).append([step, plain_value(value), None, None, 0, f"step {step}"])
    if not series:
        return None
    x = number_axis("optimizer step", sorted({point[0] for points in series.values() for point in points}))
    values = drawn_values(series, {})
    y_range = min(0.0, *values), max(values) * 1.04
    panel = curve_panel("loss by optimizer step", "", x, "loss (nats a token)", y_range, series, {})
    entries = [numbered_series(number, name, name.replace("_", " ")) for number, name in enumerate(series)]
    caption = "As logged, mean over the steps since the line before; no interval."
    return curves_section("Training", caption, entries, [{"label": "", "panels": [panel]}])


def facts_table(path: Path) -> pd.DataFrame | None:
    """A flat JSON file as a table of names and values; None if there is no such file."""
    if not path.is_file():
        return None
    found = read_json(path)
    rows = [(str(name), value if isinstance(value, str) else json.dumps(value)) for name, value in found.items()]
    return pd.DataFrame(rows, columns=["name", "value"])
