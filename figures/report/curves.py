"""Curves of the page: panels with series of points, on one axis of layers or steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from figures.style import SERIES, SERIES_MARKERS

Json = dict[str, Any]


def curves_section(
    title: str, caption: str, series: Sequence[Json], choices: Sequence[Json], *, choose: str = ""
) -> Json:
    """A section of curves; ``choices`` hold ``label`` and ``panels``."""
    text = {"type": "curves", "title": title, "caption": caption, "choose": choose}
    return {**text, "series": list(series), "choices": list(choices)}


def numbered_series(number: int, key: str, label: str) -> Json:
    """The entry of a series without a concept, in the colour and marker of its number."""
    mark = SERIES_MARKERS[number % len(SERIES_MARKERS)]
    return {"key": key, "label": label, "colour": f"s{number % len(SERIES)}", "mark": mark}


def number_axis(label: str, steps: Sequence[int]) -> Json:
    """An axis of whole numbers in rising order."""
    parts = [{"label": "", "from": steps[0], "to": steps[-1]}]
    return {"label": label, "parts": parts, "ticks": [[step, str(step)] for step in steps]}


def curve_panel(
    title: str, subtitle: str, x: Json, y_label: str, y_range: Sequence[float], series: Json, levels: Json
) -> Json:
    """A panel; ``series`` maps keys to points, ``levels`` maps keys to values."""
    y = {"label": y_label, "range": list(y_range)}
    return {"title": title, "subtitle": subtitle, "x": x, "y": y, "series": series, "levels": levels}


def drawn_values(series: Mapping[str, Sequence[Any]], levels: Mapping[str, Any]) -> list[Any]:
    """All values of a panel: points, ends of intervals, levels."""
    values = [value for points in series.values() for point in points for value in point[1:4]]
    return [value for value in (*values, *levels.values()) if value is not None]
