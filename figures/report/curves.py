"""Curves of the report: panels with series of points, on an axis of steps or of the sites of a probe sweep."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from figures.layer_axis import ENTRY, place_parts, steps_of
from figures.style import series_look

Json = dict[str, Any]


def curves_section(
    title: str, caption: str, series: Sequence[Json], choices: Sequence[Json], *, choose: str = ""
) -> Json:
    """A section of curves; ``choices`` hold ``label`` and ``panels``."""
    text = {"type": "curves", "title": title, "caption": caption, "choose": choose}
    return {**text, "series": list(series), "choices": list(choices)}


def numbered_series(number: int, key: str, label: str) -> Json:
    """The entry of a series without a style key, in the colour and marker of its number."""
    place, mark = series_look(number)
    return {"key": key, "label": label, "colour": f"s{place}", "mark": mark}


def number_axis(label: str, steps: Sequence[int]) -> Json:
    """An axis of integers in ascending order."""
    parts = [{"label": "", "from": steps[0], "to": steps[-1]}]
    return {"label": label, "parts": parts, "ticks": [[step, str(step)] for step in steps]}


def curve_panel(
    title: str, subtitle: str, x: Json, y_label: str, y_range: Sequence[Any], series: Json, levels: Json
) -> Json:
    """A panel; ``series`` maps keys to points, ``levels`` maps keys to values."""
    y = {"label": y_label, "range": list(y_range)}
    return {"title": title, "subtitle": subtitle, "x": x, "y": y, "series": series, "levels": levels}


def drawn_values(series: Mapping[str, Sequence[Any]], levels: Mapping[str, Any]) -> list[Any]:
    """All values of a panel: points, ends of intervals, levels."""
    values = [value for points in series.values() for point in points for value in point[1:4]]
    return [value for value in (*values, *levels.values()) if value is not None]


class SiteAxis(NamedTuple):
    """The axis positions of sites, in the order of the forward pass."""

    x: Json
    """The axis for the page: ``label``, ``parts`` (``label, from, to``) and ``ticks`` (place and label)."""
    places: dict[str, tuple[float, int]]
    """TransformerLens name -> place and number of the part."""


def site_axis(sites: pd.DataFrame) -> SiteAxis:
    """Place the sites of one curve, from a table with the columns ``part, site, name, layer``."""
    rows = sites.drop_duplicates("site")
    parts: list[Json] = []
    ticks: list[list[Any]] = []
    places: dict[str, tuple[float, int]] = {}
    for number, span in enumerate(place_parts(rows)):
        own = rows[rows["part"] == span.part]
        steps = steps_of(own).sort_values()
        for step, row in zip(steps, own.loc[steps.index].to_dict("records"), strict=True):
            place = round(span.offset + span.scale * step, 3)
            places[str(row["site"])] = place, number
            ticks.append([place, _label(row, step)])
        parts.append({"label": span.part.replace("_", " "), "from": round(span.left, 3), "to": round(span.right, 3)})
    return SiteAxis({"label": "layer, from 0", "parts": parts, "ticks": ticks}, places)


def _label(row: Mapping[Any, Any], step: float) -> str:
    if row["part"] == "projector" or bool(pd.isna(row["layer"])):
        return str(row["name"]).replace("_", " ")
    return "input" if step == ENTRY else str(int(row["layer"]))
