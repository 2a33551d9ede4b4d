"""The sections of tuning: cost against retention of several plans, or loss and cost of one."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from figures.plans.plan_marks import CONDITIONS
from figures.report.tables import plain_value
from figures.style import COLOURS, SERIES, SERIES_MARKERS, plan_colour

Json = dict[str, Any]
_COSTS = {
    "flops_ratio": "operations of a step / full tuning's",
    "step_time_ratio": "step time / full tuning's",
    "closed_form_ratio": "closed form of the operations / full tuning's",
}
_CONCEPTS = {colour: concept for concept, colour in reversed(COLOURS.items())}


def cost_scatter(table: pd.DataFrame) -> Json | None:
    """Retention against cost, one point for each plan; None if nothing was timed or counted."""
    overall = table[(table["family"] == "all") | (table["condition"] == "passage")]
    costs = {name: label for name, label in _COSTS.items() if overall[name].notna().any()}
    choices = []
    for condition in dict.fromkeys(overall["condition"]):
        rows = overall[(overall["condition"] == condition) & overall["retention"].notna()]
        points = [
            {
                "label": str(row["plan"]),
                "colour": _CONCEPTS[plan_colour(str(row["plan"]))],
                "x": {name: plain_value(row[name]) for name in costs},
                "y": [plain_value(row[name]) for name in ("retention", "lower", "upper")],
                "n": int(row["n"]),
            }
            for row in rows.to_dict("records")
        ]
        if points and costs:
            first = rows.iloc[0]
            choices.append(
                {
                    "label": CONDITIONS.get(str(condition), str(condition)),
                    "interval": f"{first['interval']}; n = {int(first['n'])}, seeds: {int(rows['seeds'].max())}",
                    "points": points,
                }
            )
    if not choices:
        return None
    return {
        "type": "scatter",
        "title": "Cost against retention",
        "caption": "Retention: a plan's score over full tuning's. Cost: of one training step, over full tuning's in "
        "the same process. Plans whose cost was not measured, or whose retention is undefined, are in the table only.",
        "choose": "scored on",
        "costs": [{"name": name, "label": label} for name, label in costs.items()],
        "choices": choices,
    }


def training_log(folder: Path) -> Json | None:
    """Loss by optimizer step; None if the run has no log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = list(dict.fromkeys(key for line in lines for key in line if "loss" in key and "train_" not in key))
    series = {
        name: [[int(line["step"]), plain_value(line[name]), None, None, 0, f"step {int(line['step'])}"]
               for line in lines if isinstance(line.get(name), int | float)]
        for name in names
    }  # fmt: skip
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    steps = sorted({point[0] for points in series.values() for point in points})
    values = [point[1] for points in series.values() for point in points]
    return {
        "type": "curves",
        "title": "Training",
        "caption": "As logged, mean over the steps since the line before; no interval.",
        "choose": "",
        "series": [
            {
                "key": name,
                "label": name.replace("_", " "),
                "colour": f"s{number % len(SERIES)}",
                "mark": SERIES_MARKERS[number % len(SERIES_MARKERS)],
            }
            for number, name in enumerate(series)
        ],
        "choices": [
            {
                "label": "",
                "panels": [
                    {
                        "title": "loss by optimizer step",
                        "subtitle": "",
                        "x": {
                            "label": "optimizer step",
                            "parts": [{"label": "", "from": steps[0], "to": steps[-1]}],
                            "ticks": [[step, str(step)] for step in steps],
                        },
                        "y": {"label": "loss (nats a token)", "range": [min(0.0, *values), max(values) * 1.04]},
                        "series": series,
                        "levels": {},
                    }
                ],
            }
        ],
    }


def facts_table(path: Path) -> pd.DataFrame | None:
    """A flat JSON file as a table of names and values; None if there is no such file."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        {"name": str(name), "value": value if isinstance(value, str) else json.dumps(value)}
        for name, value in found.items()
    ]
    return pd.DataFrame(rows, columns=["name", "value"])
