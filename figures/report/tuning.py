"""The report's sections on a tuning run: what it trained, its learning curves, and what it cost, in words."""

from pathlib import Path
from typing import Any

import pandas as pd

from figures.plans.learning_curve import METRICS, panels_of, set_title
from figures.plans.plan_diagram import AFTER, BEFORE, METHODS, plan_rows
from figures.read_run import TUNE, RunError, read_json, read_manifest, read_plan, read_table
from figures.report.curves import curve_panel, curves_section, drawn_values, number_axis, numbered_series
from figures.report.palette import colour_of, dashes
from figures.report.tables import plain_value, table_section
from figures.style import plan_colour
from tasks.readers.parse import parse_json

Json = dict[str, Any]
_SPARE = 0.04  # margin of a panel, as a share of the range that is drawn
_MANY_TICKS = 8  # evaluations that each get a tick
_GIGA = 1e9


def tuning_sections(folder: Path) -> list[Json]:
    """The finding, the curves, the plan and the cost, as far as the run has written them."""
    if read_manifest(folder).get("finished", True) is None:
        raise RunError(
            f"RUN must be finished, got an unfinished {TUNE} run in {str(folder)!r}. Start it again to resume."
        )
    plan, cost = (_read_json(folder / name) for name in ("plan.json", "cost.json"))
    table = folder / "evaluations.csv"
    evaluations = read_table(table, TUNE) if table.is_file() else None
    log = _read_log(folder)
    if plan is None and not log:
        raise RunError(f"RUN must contain log.jsonl or plan.json, got neither in {str(folder)!r}. Start it again.")
    found = [_finding(plan, cost, log, evaluations), _evaluation_curves(evaluations), _loss_curve(log)]
    try:
        rows, n_layers = read_plan(folder)
        found.append(plan_section(rows, n_layers))
    except RunError:  # the run goes on still, or saved adapters alone
        pass
    found.append(_cost_table(cost))
    return [section for section in found if section is not None]


def saved_files(folder: Path) -> list[list[str]]:
    """Name and content of the run's other JSON files, for readers who want all of them."""
    names = [name for name in ("plan.json", "cost.json") if (folder / name).is_file()]
    return [[name, (folder / name).read_text(encoding="utf-8")] for name in names]


def plan_section(table: pd.DataFrame, n_layers: int | None = None) -> Json:
    """The blocks and parts that each plan trains."""
    n_layers, rows = plan_rows(table, n_layers)
    columns = [*(part.replace("_", " ") for part in BEFORE), *map(str, range(n_layers))]
    columns += [part.replace("_", " ") for part in AFTER]
    plans = []
    for row in rows:
        how = [*("full" if part in row.parts else "" for part in BEFORE)]
        how += [row.method if block in row.blocks else "" for block in range(n_layers)]
        how += ["full" if part in row.parts else "" for part in AFTER]
        plans.append({"label": row.plan, "colour": colour_of(plan_colour(row.plan)), "cells": how})
    used = [method for method in METHODS if any(method in plan["cells"] for plan in plans)]
    return {
        "type": "plans",
        "title": "What trains",
        "caption": "Parts and blocks of the language model, from 0, in the order of the forward pass.",
        "columns": columns,
        "blocks": [len(BEFORE), len(BEFORE) + n_layers],
        "plans": plans,
        "methods": [[method, METHODS[method]] for method in used],
    }


def _finding(plan: Json | None, cost: Json | None, log: list[Json], evaluations: pd.DataFrame | None) -> Json | None:
    """What trained, how the loss moved, and the scores before and after, as sentences."""
    lines = []
    if plan is not None and {"trainable", "total"} <= plan.keys():
        share = plan["trainable"] / plan["total"]
        lines.append(f"{plan['trainable']:,} of {plan['total']:,} parameters train ({share:.1%}).")
    if cost is not None and cost.get("closed_form_ratio") is not None:
        lines.append(f"A step takes {cost['closed_form_ratio']:.2f} of the operations of full tuning, in closed form.")
    losses = [(int(line["step"]), float(line["loss"])) for line in log if isinstance(line.get("loss"), int | float)]
    if len(losses) > 1:
        lines.append(
            f"The training loss goes from {losses[0][1]:.3f} nats a token (step {losses[0][0]}) to {losses[-1][1]:.3f} "
            f"(step {losses[-1][0]})."
        )
    if evaluations is None or evaluations.empty:
        return {"type": "text", "title": "What was found", "caption": "", "lines": lines} if lines else None
    last = evaluations[evaluations["step"] == evaluations["step"].max()]
    shown = last[["set", "family", "metric", "score", "lower", "upper", "n"]].reset_index(drop=True)
    section = table_section(shown, title="What was found", source="evaluations.csv")
    return {**section, "lines": [*lines, f"Scores after step {int(last['step'].iloc[0])}:"], "short": True}


def _evaluation_curves(table: pd.DataFrame | None) -> Json | None:
    """Scores by optimizer step with intervals, one panel for each set, metric and family."""
    if table is None or table.empty:
        return None
    panels = []
    for name, metric, family in panels_of(table, list(METRICS)):
        here = table[(table["set"] == name) & (table["metric"] == metric) & (table["family"] == family)]
        points = [
            [int(row["step"]), *(plain_value(row[column]) for column in ("score", "lower", "upper")), 0,
             f"step {int(row['step'])}"]
            for row in here.sort_values("step").to_dict("records")
        ]  # fmt: skip
        chance = [plain_value(value) for value in sorted(set(here["chance"].dropna()))] if "chance" in here else []
        levels = {"chance": chance[0]} if chance else {}
        series = {"score": points}
        label = METRICS[metric].replace("\n", " ")
        n = " or ".join(map(str, sorted(set(here["n"].astype(int)))))
        panels.append(_step_panel(f"{set_title(name)}: {family}", f"n = {n}", label, series, levels, metric))
    entries: list[Json] = [
        {"key": "score", "label": "score", "colour": "score", "mark": "o"},
        {"key": "chance", "label": "a guess", "colour": "chance", "dash": dashes("chance")},
    ]
    caption = "Bands: 95 % intervals over pictures."
    return curves_section("Scores while training", caption, entries, [{"label": "", "panels": panels}])


def _loss_curve(log: list[Json]) -> Json | None:
    """Loss by optimizer step; None if the run has no log."""
    series: dict[str, list[Any]] = {}
    for line in log:
        for name, value in line.items():
            if "loss" in name and "train_" not in name and isinstance(value, int | float):
                step = int(line["step"])
                series.setdefault(name, []).append([step, plain_value(value), None, None, 0, f"step {step}"])
    if not series:
        return None
    panel = _step_panel("loss by optimizer step", "", "loss (nats a token)", series, {}, "loss")
    entries = [numbered_series(number, name, name.replace("_", " ")) for number, name in enumerate(series)]
    caption = "As logged, mean over the steps since the line before; no interval."
    return curves_section("Training loss", caption, entries, [{"label": "", "panels": [panel]}])


def _step_panel(title: str, subtitle: str, label: str, series: Json, levels: Json, metric: str) -> Json:
    steps = sorted({point[0] for points in series.values() for point in points})
    x = number_axis("optimizer step", steps if len(steps) <= _MANY_TICKS else [steps[0], steps[-1]])
    if len(steps) > _MANY_TICKS:
        x["ticks"] = [[step, str(step)] for step in steps]
    values = drawn_values(series, levels)
    spare = _SPARE * (max(values) - min(values) or 1.0)
    low, high = {"accuracy": (0.0, 1.0), "loss": (min(0.0, *values), max(values) + spare)}.get(
        metric, (min(values) - spare, max(values) + spare)
    )
    return curve_panel(title, subtitle, x, label, (low, high), series, levels)


def _cost_table(cost: Json | None) -> Json | None:
    """The main entries of ``cost.json`` with plain names and units."""
    if cost is None:
        return None

    def of(name: str, scale: float = 1.0) -> float | None:
        value = cost.get(name)
        return None if not isinstance(value, int | float) else value / scale

    peak = "peak memory, measured" if cost.get("peak_memory_is_measured") else "peak memory, estimated"
    rows = [
        ("optimizer steps", of("steps"), ""),
        ("parameters that train", of("trainable"), ""),
        ("time of a step, median", of("step_seconds_median"), "s"),
        ("wait for the data of a step, median", of("data_seconds_median"), "s"),
        ("positions of the language model per second", of("tokens_per_second"), "1/s"),
        ("operations of a step, forward", of("flops_forward", _GIGA), "10⁹"),
        ("operations of a step, backward", of("flops_backward", _GIGA), "10⁹"),
        ("operations in closed form, relative to full tuning", of("closed_form_ratio"), ""),
        (peak, of("peak_memory", _GIGA), "GB"),
        ("memory of the optimizer", of("bytes_optimizer", _GIGA), "GB"),
        ("processes", of("processes"), ""),
    ]
    table = pd.DataFrame([row for row in rows if row[1] is not None], columns=["quantity", "value", "unit"])
    if table.empty:
        return None
    return {**table_section(table, title="What it cost", source="cost.json"), "short": True, "same": []}


def _read_log(folder: Path) -> list[Json]:
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_json(path: Path) -> Json | None:
    return dict(read_json(path)) if path.is_file() else None
