"""Maps of what a probe predicts at every patch of a picture, one for each site and target."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from figures.parts import PARTS, belongs, main_name
from figures.report.axis import site_axis
from figures.report.pictures import colour_scale, packed, quantise, thumbnail
from figures.report.tables import plain_value
from figures.saved import EXAMPLES, MAPS, read_maps
from figures.style import SEQUENTIAL

Json = dict[str, Any]
_SIDES = ((24, 336), (10**9, 128))  # up to so many examples: pictures of so many pixels
_BYTE = 256


class Patches(NamedTuple):
    """The rows of one target as arrays, with sites and labels as numbers.

    Args:
        of_example: Example -> positions of its rows in the arrays.
        site: Number of the site, in the order of the table.
        row: Row of the patch grid.
        col: Column of the patch grid.
        p_true: Probability of the example's label.
        predicted: Number of the predicted label in ``labels``.
        n_sites: Number of sites.
        labels: All labels that were predicted.
    """

    of_example: dict[str, npt.NDArray[np.int64]]
    site: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    p_true: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    n_sites: int
    labels: list[str]


def probe_maps(folder: Path, results: pd.DataFrame) -> Json | None:
    """The section of maps, with all examples; None if the run made none.

    Raises:
        ValueError: If the files contradict each other.
    """
    maps = read_maps(folder)
    if maps is None:
        return None
    table = maps.table
    targets = [str(target) for target in table["target"].unique()]
    chance = results[(results["split"] == "cv") & results["part"].isin(PARTS)].groupby("target")["chance"].first()
    choices = [
        {**_sites(table[table["target"] == target]), "label": target, "chance": plain_value(chance.get(target))}
        for target in targets
    ]
    side = next(side for most, side in _SIDES if len(maps.examples) <= most)
    numbered = [_patches(table[table["target"] == target]) for target in targets]
    examples = []
    for entry in maps.examples:
        name = str(entry["example"])
        classes = [[str(label) for label in entry["classes"].get(target, [])] for target in targets]
        own = [(patches, patches.of_example[name]) for patches in numbered if name in patches.of_example]
        if not own:
            raise ValueError(f"{EXAMPLES} must hold examples of {MAPS}, got {name!r}. Run the sweep again.")
        shape = (
            max(int(patches.row[found].max()) + 1 for patches, found in own),
            max(int(patches.col[found].max()) + 1 for patches, found in own),
        )
        examples.append(
            {
                "name": name,
                "question": str(entry.get("question", "")),
                "answer": str(entry.get("answer", "")),
                "labels": {str(key): str(value) for key, value in entry.get("labels", {}).items()},
                "boxes": entry.get("boxes") or {},
                "focus": entry.get("focus"),
                "shape": list(shape),
                "classes": classes,
                "packed": [
                    _pack(patches, name, known, shape) for patches, known in zip(numbered, classes, strict=True)
                ],
                "picture": thumbnail(maps.pictures / f"{entry['k']}.png", side),
            }
        )
    return {
        "type": "maps",
        "title": "Where in the picture",
        "caption": "Probability that the probe gives to the example's own label when it reads one patch alone, to "
        f"three decimals. The probe was fitted on pooled tokens ({_fitted_on(results, targets)}) of other examples "
        "that share no group with these. "
        "These are single examples, without intervals.",
        "choose": "target",
        "scale": {
            "colours": colour_scale(SEQUENTIAL),
            "low": 0,
            "high": 1,
            "label": "probability of the example's label",
        },
        "choices": choices,
        "examples": examples,
    }


def _fitted_on(results: pd.DataFrame, targets: list[str]) -> str:
    """The token group that each target's probe was fitted on, or the one of all targets."""
    rows = results[results["part"].isin(PARTS)].groupby("target")["tokens"].first()
    known = {target: str(rows[target]) for target in targets if target in rows}
    groups = set(known.values())
    return groups.pop() if len(groups) == 1 else ", ".join(f"{target}: {group}" for target, group in known.items())


def _sites(rows: pd.DataFrame) -> Json:
    """The sites of a target in the order of the forward pass, and their axis."""
    sites = rows.drop_duplicates("site")[["part", "site", "name", "layer", "depth"]]
    axis = site_axis(sites[belongs(sites, main_name(sites))])
    entries = []
    for row in sites.to_dict("records"):
        site = str(row["site"])
        place, part = axis.places.get(site, (None, None))
        where = str(row["part"]).replace("_", " ")
        layer = "" if pd.isna(row["layer"]) else f" layer {int(row['layer'])}"
        label = f"{where}{layer}, {str(row['name']).replace('_', ' ')}"
        entries.append({"site": site, "label": label, "x": place, "part": part})
    return {"sites": entries, "x": axis.x}


def _patches(rows: pd.DataFrame) -> Patches:
    """Number the text columns of a target once, since comparing text is slow."""
    site, sites = pd.factorize(rows["site"])
    predicted, labels = pd.factorize(rows["predicted"].astype(str))
    example, names = pd.factorize(rows["example"])
    order = np.argsort(example, kind="stable")
    bounds = np.cumsum(np.bincount(example, minlength=len(names)))[:-1]
    return Patches(
        of_example={str(name): found for name, found in zip(names, np.split(order, bounds), strict=True)},
        site=site,
        row=rows["row"].to_numpy(dtype=np.int64),
        col=rows["col"].to_numpy(dtype=np.int64),
        p_true=rows["p_true"].to_numpy(dtype=np.float64),
        predicted=predicted,
        n_sites=len(sites),
        labels=[str(label) for label in labels],
    )


def _pack(patches: Patches, example: str, classes: list[str], shape: tuple[int, int]) -> str | None:
    """Probabilities and numbers of predicted classes, by site, row and column; None for an example without maps."""
    found = patches.of_example.get(example)
    if found is None:
        return None
    size = patches.n_sites, *shape
    place = np.ravel_multi_index((patches.site[found], patches.row[found], patches.col[found]), size)
    if not np.array_equal(np.bincount(place, minlength=int(np.prod(size))), np.ones(np.prod(size))):
        raise ValueError(f"{MAPS} must hold each patch of each site once, got {len(found)} rows for {size}.")
    numbers = {label: number for number, label in enumerate(classes)}
    unknown = sorted({patches.labels[code] for code in np.unique(patches.predicted[found])} - numbers.keys())
    if unknown:
        raise ValueError(f"predicted must be one of the classes in {EXAMPLES}, got {unknown[0]!r}. Sweep again.")
    renumbered = np.array([numbers.get(label, 0) for label in patches.labels])
    probability = np.zeros(size, dtype=np.float64)
    predicted: npt.NDArray[Any] = np.zeros(size, dtype=np.uint8 if len(numbers) <= _BYTE else np.uint16)
    probability.flat[place] = patches.p_true[found]
    predicted.flat[place] = renumbered[patches.predicted[found]]
    return packed(quantise(probability), predicted)
