"""The report's sections on pairs of layers: geometry (findings, curves, maps) and transfer of probes."""

from pathlib import Path
from typing import Any

import pandas as pd

from figures.geometry.draw import MEASURES, geometry_panels
from figures.read_run import read_saved
from figures.report.curves import curve_panel, curves_section, drawn_values, number_axis, numbered_series
from figures.report.palette import dashes
from figures.report.pictures import colour_scale
from figures.report.tables import plain_value, table_section
from figures.style import SEQUENTIAL

Json = dict[str, Any]
_SHOWN = ("comparison", "finding", "side", "measure", "layer_a", "layer_b", "first", "last", "value", "lower", "upper",
          "control", "random_init", "p", "shown", "reason", "n")  # fmt: skip
_SPARE = 0.04  # margin of a panel, as a share of the range that is drawn


def geometry_findings(folder: Path, most_rows: int) -> Json | None:
    """Where dimensions peak and what is nearest; None if the run has no findings."""
    path = folder / "findings.csv"
    if not path.is_file():
        return None
    table = read_saved(path)
    shown = table[[name for name in _SHOWN if name in table]]
    if "shown" in shown:
        shown = shown.assign(shown=shown["shown"].map({True: "yes", False: "not shown"}))
    return table_section(shown, title="What is found", source=path.name, most_rows=most_rows)


def geometry_curves(table: pd.DataFrame) -> Json:
    """Every measure by layer, one choice for each comparison."""
    comparisons = [str(comparison) for comparison in dict.fromkeys(table["comparison"])]
    by_choice = {comparison: geometry_panels(table, comparison) for comparison in comparisons}
    labels = list(
        dict.fromkeys(curve.label or "both" for panels in by_choice.values() for _, _, own in panels for curve in own)
    )
    series = [numbered_series(number, label, label) for number, label in enumerate(labels)]
    controls = {"control": "shuffled pairs", "random_init": "randomly initialised model"}
    series += [
        {"key": key, "label": label, "colour": key, "dash": dashes(key)}
        for key, label in controls.items() if table[key].notna().any()
    ]  # fmt: skip
    choices = []
    for comparison, panels in by_choice.items():
        drawn = []
        for title, label, curves in panels:
            points: dict[str, list[Any]] = {}
            for curve in curves:
                rows = curve.rows[curve.rows["value"].notna()].sort_values("layer_a")
                points[curve.label or "both"] = _points(rows, ("value", "lower", "upper"))
                for key in controls:
                    if len(curves) == 1 and rows[key].notna().any():
                        points[key] = _points(rows[rows[key].notna()], (key,))
            values = drawn_values(points, {})
            spare = _SPARE * (max(values) - min(values) or 1.0)
            x = number_axis(
                "layer, from 0", sorted({int(layer) for curve in curves for layer in curve.rows["layer_a"]})
            )
            y_range = (min(values) - spare, max(values) + spare)
            drawn.append(
                curve_panel(title.partition(", n")[0], title.partition(", ")[2], x, label, y_range, points, {})
            )
        choices.append({"label": comparison, "panels": drawn})
    caption = (
        "Bands: 95 % intervals over halves of the examples, drawn without replacement. Compare dimensions at equal n "
        "and rank only."
    )
    return curves_section("By layer", caption, series, choices, choose="comparison")


def _points(rows: pd.DataFrame, columns: tuple[str, ...]) -> list[list[Any]]:
    """Layer, value, ends of the interval, part of the axis and name of every point."""
    return [
        [
            int(row["layer_a"]), *(plain_value(row[column]) for column in columns), *[None] * (3 - len(columns)), 0,
            _where(int(row["layer_a"]), int(row["layer_b"])),
        ]
        for row in rows.to_dict("records")
    ]  # fmt: skip


def _where(a: int, b: int) -> str:
    return f"layer {a}" if a == b else f"layer {a} of a, {b} of b"


def layer_maps(folder: Path) -> list[Json]:
    """Every layer of one side against every layer of the other, one section for each measure."""
    path = folder / "map.csv"
    if not path.is_file():
        return []
    table = read_saved(path)
    sections = []
    for measure, rows in table.groupby("measure", sort=False):
        choices = []
        for comparison, group in rows.groupby("comparison", sort=False):
            a, b = sorted(set(group["layer_a"])), sorted(set(group["layer_b"]))
            cells: list[list[Any]] = [[None] * len(b) for _ in a]
            for row in group.to_dict("records"):
                ends = [plain_value(row[name]) for name in ("value", "lower", "upper")]
                cells[a.index(row["layer_a"])][b.index(row["layer_b"])] = [*ends, None, None]
            lines = [f"layer {int(layer)}" for layer in a]
            choices.append(
                {"label": str(comparison), "lines": lines, "columns": [str(int(layer)) for layer in b], "cells": cells}
            )
        most = plain_value(max(float(rows["value"].max()), 1e-6))
        name = MEASURES.get(str(measure), str(measure))
        sections.append(
            {
                "type": "heat",
                "title": f"Layer against layer: {name}",
                "caption": "Down: layers of the first side; across: of the second. On hover: the interval, where "
                "the run has one.",
                "choose": "comparison",
                "scale": {"colours": colour_scale(SEQUENTIAL), "low": 0, "high": most, "label": name},
                "across": "layer of the second side, from 0",
                "choices": choices,
            }
        )
    return sections


def transfer_heat(results: pd.DataFrame) -> Json:
    """Score by the layer that a probe is fitted at and the layer that it is read at."""
    choices = []
    for (target, direction), rows in results.groupby(["target", "direction"], sort=False):
        down, across = (sorted({int(layer) for layer in rows[name]}) for name in ("source_layer", "read_layer"))
        cells: list[list[Any]] = [[None] * len(across) for _ in down]
        for row in rows.to_dict("records"):
            cell = [plain_value(row[name]) for name in ("score", "lower", "upper", "p_max", "shuffled")]
            cells[down.index(int(row["source_layer"]))][across.index(int(row["read_layer"]))] = cell
        source = str(direction).partition(" to ")[0]
        choices.append(
            {
                "label": f"{target}, {direction}",
                "lines": [f"{source} layer {layer}" for layer in down],
                "columns": [str(layer) for layer in across],
                "cells": cells,
            }
        )
    low, high = float(results["chance"].min()), float(results["score"].max())
    label = " and ".join(dict.fromkeys(str(name).replace("_", " ") for name in results["metric"]))
    return {
        "type": "heat",
        "title": "Fitted on one side, read on the other",
        "caption": "Rows: the layer that a probe is fitted at; columns: the layer of the other side that it is read "
        "at. Colours begin at chance. A dot: p, adjusted for the choice among all pairs, is below 0.05. The value at "
        "the end is that of shuffled pairs.",
        "choose": "target, direction",
        "scale": {
            "colours": colour_scale("viridis"),
            "low": low,
            "high": max(high, low + 0.05),
            "label": label,
            "last": "shuffled pairs",
        },
        "across": "layer that is read, from 0",
        "choices": choices,
    }
