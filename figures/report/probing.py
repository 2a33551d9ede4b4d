"""The report's sections on a probe sweep: score by layer for each target."""

from typing import Any

import pandas as pd

from figures.layer_axis import PARTS, belongs, names_in_blocks
from figures.report.curves import SiteAxis, curve_panel, curves_section, drawn_values, site_axis
from figures.report.palette import dashes
from figures.report.tables import plain_value

Json = dict[str, Any]
INTERVAL = "95 % intervals over groups"
_LOWEST = -1.0  # lowest R2 that is drawn: it has no lower bound, and one bad probe would flatten all curves
_CONTROLS = {
    "control": ("control task", "control", False),
    "random_init": ("randomly initialised model", "random_init", False),
    "shuffled": ("shuffled labels", "muted", True),
}


def probe_curves(results: pd.DataFrame) -> Json:
    """Score by layer with intervals, controls and chance, one panel for each target.

    Raises ``ValueError`` if the table contains no score of any site.
    """
    sites = results[results["part"].isin(PARTS)]
    if sites.empty:
        raise ValueError("results must contain at least one site, got none. Run probe-sweep first.")
    others = [str(split) for split in dict.fromkeys(results["split"]) if split != "cv"]
    series = [{"key": "score", "label": "score, cross-validated", "colour": "score", "mark": True}]
    for split in others:
        entry = {"key": f"split {split}", "label": f"score on the {split} split", "colour": "transfer", "mark": True}
        series.append(entry | {"open": True})
    series += [
        {"key": key, "label": label, "colour": colour, "off": off, "dash": dashes(colour)}
        for key, (label, colour, off) in _CONTROLS.items()
        if sites[key].notna().any()
    ]
    levels = {"chance": "chance (a constant answer)"}
    if (results["part"] == "pixels").any():
        levels["pixels"] = "raw pixels"
    series += [{"key": key, "label": label, "colour": key, "dash": dashes(key)} for key, label in levels.items()]
    choices = []
    for name in names_in_blocks(results):
        chosen = sites[belongs(sites, name)]
        axis = site_axis(chosen)
        panels = [
            _panel(chosen[chosen["target"] == target], results[results["target"] == target], axis, others)
            for target in dict.fromkeys(chosen["target"])
        ]
        choices.append({"label": name, "panels": panels})
    caption = (
        f"Bands: {INTERVAL}, for each layer alone; the highest of many layers is partly chance, which the table's "
    )
    caption += "`best_score` allows for. Layers count from 0."
    if (sites["metric"] == "r2").any():
        caption += f" R2 below {_LOWEST:g} is drawn at the lower edge."
    return curves_section("Score by layer", caption, series, choices, choose="activation")


def _panel(sites: pd.DataFrame, everything: pd.DataFrame, axis: SiteAxis, others: list[str]) -> Json:
    validated = sites[sites["split"] == "cv"]
    first = validated.iloc[0]
    series = {"score": _points(validated, "score", axis, interval=True)}
    for split in others:
        series[f"split {split}"] = _points(sites[sites["split"] == split], "score", axis, interval=True)
    for key in _CONTROLS:
        series[key] = _points(validated, key, axis)
    levels = {"chance": plain_value(first["chance"])}
    pixels = everything[(everything["part"] == "pixels") & (everything["split"] == "cv")]
    if not pixels.empty:
        levels["pixels"] = plain_value(pixels["score"].iloc[0])
    drawn = drawn_values(series, levels)
    metric = str(first["metric"])
    counts = [f"n = {int(validated['n'].max())}"]
    counts += [f"{split}: n = {int(sites[sites['split'] == split]['n'].max())}" for split in others]
    y_range = 0.0 if metric != "r2" else max(_LOWEST, min(0.0, *drawn)), max(1.0, *drawn)
    subtitle = f"{first['tokens']} tokens, {', '.join(counts)}"
    known = {key: points for key, points in series.items() if points}
    return curve_panel(str(first["target"]), subtitle, axis.x, metric.replace("_", " "), y_range, known, levels)


def _points(rows: pd.DataFrame, column: str, axis: SiteAxis, *, interval: bool = False) -> list[list[Any]]:
    """Place, value, ends of the interval, number of the part, and site of every row that has a value."""
    found = []
    for row in rows[rows[column].notna()].to_dict("records"):
        place, part = axis.places[str(row["site"])]
        ends = [plain_value(row["lower"]), plain_value(row["upper"])] if interval else [None, None]
        found.append([place, plain_value(row[column]), *ends, part, str(row["site"])])
    return sorted(found, key=lambda point: float(point[0]))
