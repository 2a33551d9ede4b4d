"""The report's maps of a patch sweep over the patch grid: the mean over the pairs, and each pair on its own picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from figures.effect_colours import symmetric_range
from figures.effects import SIGNIFICANT, count_pairs, fraction_name, of_metric
from figures.patch_map import of_patches, pair_rows, with_patches
from figures.read_run import read_pair_values, read_saved
from figures.report.pictures import colour_scale, maps_section, thumbnail
from figures.report.tables import plain_value
from figures.style import DIVERGING
from tasks.files import is_file

Json = dict[str, Any]
_SIDE = 336  # pixels of a picture
DOTS = (
    f"A dot, or a minus where the effect is negative: p, adjusted over the run, is below {SIGNIFICANT}. "
    "On hover: 95 % intervals over pairs."
)


def patch_map(folder: Path, results: pd.DataFrame, meaning: str, choice_label: Any) -> Json | None:
    """Effect of every patch of the grid; None if the run has no single patches.

    The mean over several pairs has no picture, since their objects are in different places.

    Args:
        folder: The run directory.
        results: Its table.
        meaning: A sentence about the effect, for the caption.
        choice_label: A function that names a metric, part and activation.
    """
    if not of_patches(results).any():
        return None
    rows = by_metric(with_patches(results))
    shape = int(rows["row"].max()) + 1, int(rows["col"].max()) + 1
    choices, sites_of = [], []
    for key, group in rows.groupby(["metric", "part", "name"], sort=False):
        sites = list(dict.fromkeys(zip(group["site"], map(layer_text, group["layer"]), strict=True)))
        labelled = [{"site": site, "label": f"{key[2]}, layer {layer}", "short": layer} for site, layer in sites]
        choices.append({"label": choice_label(key), "sites": labelled})
        sites_of.append((key, [site for site, _ in sites]))
    n = int(rows["n"].max())
    pairs = _pairs(folder)
    name = f"mean of {n} pairs" if n > 1 else str(pairs["id"].iloc[0]) if len(pairs) else "the pair"
    own = folder / "picture.png"
    first = _example(name, pairs.head(1) if n == 1 else pairs.head(0), own if n == 1 else None, shape)
    first["values"] = [_grids(rows, key, sites, shape) for key, sites in sites_of]
    examples = [first]
    values = read_pair_values(folder) if n > 1 else None
    if values is not None:
        for k, identity in enumerate(pairs["id"]):
            picture = folder / "pictures" / f"{k}.png"
            if not is_file(picture):
                break
            mine = by_metric(pair_rows(with_patches(results), values, str(identity)))
            example = _example(str(identity), pairs.iloc[[k]], picture, shape)
            example["values"] = [_grids(mine, key, sites, shape) for key, sites in sites_of]
            example["scale"] = effect_scale(mine)
            examples.append(example)
    caption = f"{meaning} "
    if len(examples) > 1:
        caption += (
            f"First the mean over {count_pairs(rows)}, without a picture, since their objects are in different places; "
            "then single pairs, each on its own picture, without intervals. "
        )
    section = maps_section(caption + DOTS, "metric, part, activation", effect_scale(rows), choices, examples)
    return {**section, "start": {"choice": 0, "site": _telling(first["values"][0])}}


def by_metric(results: pd.DataFrame) -> pd.DataFrame:
    """The table with effects and their intervals, sorted by metric."""
    return pd.concat([of_metric(results, str(metric)) for metric in dict.fromkeys(results["metric"])])


def effect_scale(rows: pd.DataFrame) -> Json:
    """The colours of effects, in a symmetric range."""
    end = plain_value(float(symmetric_range(rows["effect"]).vmax or 1.0))
    return {"colours": colour_scale(DIVERGING), "low": -end, "high": end, "label": fraction_name(rows)}


def effect_cell(row: Mapping[Any, Any]) -> list[Any]:
    """Effect, its interval, adjusted p, value of the metric."""
    return [plain_value(row[name]) for name in ("effect", "effect_lower", "effect_upper", "p_adjusted", "value")]


def layer_text(layer: Any) -> str:
    """The number of a layer, or ``-``."""
    return "-" if pd.isna(layer) else str(int(layer))


def _grids(rows: pd.DataFrame, key: Any, sites: Sequence[str], shape: tuple[int, int]) -> list[list[Any]]:
    """For each site the cells of the patch grid, row by row; None where nothing was run."""
    metric, part, name = key
    own = rows[(rows["metric"] == metric) & (rows["part"] == part) & (rows["name"] == name)]
    numbers = {site: number for number, site in enumerate(sites)}
    grids: list[list[Any]] = [[None] * (shape[0] * shape[1]) for _ in sites]
    for row in own.to_dict("records"):
        grids[numbers[row["site"]]][row["row"] * shape[1] + row["col"]] = effect_cell(row)
    return grids


def _telling(grids: Sequence[Sequence[Any]]) -> int:
    """The site with the largest effect of a patch; 0 if no effect is defined."""
    most: npt.NDArray[np.float64] = np.array(
        [max((abs(cell[0]) for cell in grid if cell and cell[0] is not None), default=-1.0) for grid in grids]
    )
    return int(most.argmax())


def _example(name: str, pair: pd.DataFrame, picture: Path | None, shape: tuple[int, int]) -> Json:
    told = {"question": "", "answer": ""}
    if len(pair):
        first = pair.iloc[0]
        told = {"question": str(first["question"]), "answer": f"{first['answer']} (foil: {first['foil']})"}
    shown = thumbnail(picture, _SIDE) if picture is not None and is_file(picture) else ""
    return {
        "name": name, **told, "labels": {}, "boxes": {}, "focus": None, "shape": list(shape), "picture": shown,
    }  # fmt: skip


def _pairs(folder: Path) -> pd.DataFrame:
    """The pairs of the run, without rows if it has no list of them."""
    path = folder / "pairs.parquet"
    return read_saved(path) if path.is_file() else pd.DataFrame({"id": []})
