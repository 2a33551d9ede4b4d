"""The report's sections on a patch sweep: curves, maps of layers by token group or head, maps of patches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from figures.effects import count_pairs, fraction_name, layer_label, matches, token_title, with_effect
from figures.patch_map import of_patches
from figures.report.curves import curve_panel, curves_section, drawn_values, number_axis, numbered_series
from figures.report.palette import dashes
from figures.report.patch_maps import DOTS, by_metric, effect_cell, effect_scale, layer_text, patch_map
from figures.report.tables import plain_value
from figures.style import series_numbers

Json = dict[str, Any]
INTERVAL = "95 % intervals over pairs"
_SPARE = 0.04  # margin of a panel, as a share of the range that is drawn


def shown_table(results: pd.DataFrame) -> pd.DataFrame:
    """The saved table, with the lost fraction beside the recovered one if the clean run was changed."""
    rows = with_effect(results)
    if not (rows["unchanged"] == "clean").any():
        return results
    clean = rows["unchanged"] == "clean"
    drawn = {"lost": "effect", "lost_lower": "effect_lower", "lost_upper": "effect_upper"}
    found = results.assign(**{name: rows[column].where(clean) for name, column in drawn.items()})
    names = [name for name in results.columns if name not in drawn]
    after = names.index("recovered_upper") + 1
    return found[[*names[:after], *drawn, *names[after:]]]


def patch_curves(results: pd.DataFrame) -> Json | None:
    """Value and effect by layer, one curve for each activation and token group; None without layers, or with heads."""
    plain = results[results["layer"].notna() & ~of_patches(results)]
    if plain.empty:
        return None
    rows = by_metric(plain)
    if (rows["head"] != "").any():
        return None
    names = list(dict.fromkeys(zip(rows["part"], rows["name"], rows["tokens"], strict=True)))
    parts, several = len({part for part, _, _ in names}) > 1, len({key[:2] for key in names}) > 1
    series: list[Json] = []
    numbers = series_numbers([str(tokens or name) for _, name, tokens in names])
    for number, (part, name, tokens) in zip(numbers, names, strict=True):
        activation = f"{str(part).replace('_', ' ')} {name}" if parts else str(name)
        label = ", ".join(filter(None, [activation if several or not tokens else "", token_title(tokens)]))
        series.append(numbered_series(number, f"{part} {name} {tokens}", label))
    runs = zip(("clean", "corrupt"), _runs(rows), strict=True)
    series += [{"key": key, "label": label, "colour": key, "dash": dashes(key)} for key, label in runs]
    panels = [
        panel for metric in dict.fromkeys(rows["metric"]) for panel in _panels(rows[rows["metric"] == metric], names)
    ]
    caption = f"Bands: {INTERVAL}, {count_pairs(rows)}. {_meaning(rows)}"
    return curves_section("By layer", caption, series, [{"label": "", "panels": panels}])


def patch_heat(results: pd.DataFrame) -> Json | None:
    """Effect by layer and token group, or by layer and head; None if the map would have a single row."""
    plain = results[~of_patches(results)]
    if plain.empty:
        return None
    rows = by_metric(plain)
    heads = bool((rows["head"] != "").any())
    down = "head" if heads else "tokens"
    rows = rows[rows[down] != ""]
    keys = ["metric", "part", "name", *(["tokens"] if heads else [])]
    choices = []
    for key, group in rows.groupby(keys, sort=False):
        lines = list(dict.fromkeys(group[down]))
        columns = list(dict.fromkeys(map(layer_text, group["layer"].sort_values(na_position="first"))))
        cells: list[list[Any]] = [[None] * len(columns) for _ in lines]
        for row in group.to_dict("records"):
            cells[lines.index(row[down])][columns.index(layer_text(row["layer"]))] = effect_cell(row)
        names = [f"head {line}" if heads else token_title(line) for line in lines]
        choices.append({"label": _choice(key), "lines": names, "columns": columns, "cells": cells})
    if rows["effect"].isna().all() or max(len(choice["lines"]) for choice in choices) < 2:
        return None
    return {
        "type": "heat",
        "title": f"By layer and {'head' if heads else 'token group'}",
        "caption": f"{_meaning(rows)} {DOTS}",
        "choose": "metric, part, activation",
        "scale": effect_scale(rows),
        "across": layer_label(rows),
        "choices": choices,
    }


def patch_maps(folder: Path, results: pd.DataFrame) -> Json | None:
    """Effect of every patch of the grid, over all pairs and for single ones; None if the run has no single patches."""
    return patch_map(folder, results, _meaning(results), _choice)


def _panels(rows: pd.DataFrame, names: list[tuple[Any, Any, Any]]) -> list[Json]:
    """A panel of the metric, and one of its recovered or lost fraction where that is defined."""
    first = rows.iloc[0]
    metric = str(first["metric"]).replace("_", " ")
    levels = {key: plain_value(first[key]) for key in ("clean", "corrupt")}
    panels = [_curve_panel(rows, names, metric, ("value", "lower", "upper"), levels)]
    if rows["effect"].notna().any():
        lost = first["unchanged"] == "clean"
        ends = {"clean": 0.0 if lost else 1.0, "corrupt": 1.0 if lost else 0.0}
        title = f"{fraction_name(rows)} of {metric}"
        panels.append(_curve_panel(rows, names, title, ("effect", "effect_lower", "effect_upper"), ends))
    return panels


def _curve_panel(
    rows: pd.DataFrame, names: list[tuple[Any, Any, Any]], title: str, columns: tuple[str, str, str], levels: Json
) -> Json:
    series = {}
    for key in names:
        curve = rows[matches(rows, ("part", "name", "tokens"), key)].sort_values("layer")
        points = [
            [int(row["layer"]), *(plain_value(row[column]) for column in columns), 0, _where(row)]
            for row in curve.to_dict("records")
            if pd.notna(row[columns[0]])
        ]
        if points:
            series[" ".join(map(str, key))] = points
    known = {key: value for key, value in levels.items() if value is not None}
    drawn = drawn_values(series, known)
    spare = _SPARE * (max(drawn) - min(drawn) or 1.0)
    x = number_axis(layer_label(rows), sorted({int(layer) for layer in rows["layer"]}))
    y_label, y_range = "fraction" if columns[0] == "effect" else title, (min(drawn) - spare, max(drawn) + spare)
    return curve_panel(title, count_pairs(rows), x, y_label, y_range, series, known)


def _meaning(rows: pd.DataFrame) -> str:
    clean, corrupt = _runs(rows)
    if rows["unchanged"].iloc[0] == "clean":
        return f"Lost fraction, 1 - recovered: 0 as the {clean}, 1 as the {corrupt}."
    return f"Recovered fraction: 0 as the {corrupt}, 1 as the {clean}."


def _runs(rows: pd.DataFrame) -> tuple[str, str]:
    """Labels of the columns ``clean`` and ``corrupt``."""
    return ("donor", "recipient") if rows["op"].iloc[0] == "transplant" else ("clean run", "corrupt run")


def _choice(key: Any) -> str:
    return ", ".join(token_title(str(word)).replace("_", " ") for word in key)


def _where(row: Mapping[Any, Any]) -> str:
    window, layer = str(row["window"]), str(int(row["layer"]))
    return f"layer {layer}" if window in ("", layer) else f"layer {layer} (window {window})"
