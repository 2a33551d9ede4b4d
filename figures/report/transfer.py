"""The report's section on a transfer sweep: a map of layers by layers for each target and direction."""

from typing import Any

import pandas as pd

from figures.report.pictures import colour_scale
from figures.report.tables import plain_value

Json = dict[str, Any]


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
        "scale": {"colours": colour_scale("viridis"), "low": low, "high": max(high, low + 0.05), "label": label},
        "across": "layer that is read, from 0",
        "choices": choices,
    }
