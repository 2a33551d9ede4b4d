"""The axis of the page for all sites of a probe sweep, in the order of the forward pass."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from figures.parts import ENTRY, place_parts, steps_of

Json = dict[str, Any]


class SiteAxis(NamedTuple):
    """The place of every site.

    Args:
        x: The axis for the page: ``label``, ``parts`` (``label, from, to``) and ``ticks`` (place and label).
        places: TransformerLens name -> place and number of the part.
    """

    x: Json
    places: dict[str, tuple[float, int]]


def site_axis(sites: pd.DataFrame) -> SiteAxis:
    """Place the sites of one curve.

    Args:
        sites: Columns ``part, site, name, layer``; a site may occur more than once.
    """
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
