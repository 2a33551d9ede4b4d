"""Maps of what a probe predicts at every patch of a picture, one for each site and target."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from figures.findings.peaks import NONE, curve_names, summarise
from figures.layer_axis import PARTS, belongs, main_name
from figures.read_run import EXAMPLES, MAPS, read_maps
from figures.report.curves import site_axis
from figures.report.pictures import colour_scale, maps_section, packed, quantise, thumbnail
from figures.report.tables import plain_value
from figures.style import SEQUENTIAL

Json = dict[str, Any]
_SIDES = ((24, 336), (10**9, 128))  # largest number of examples, and the side of their pictures in pixels
_BYTE = 256  # largest number of classes whose numbers fit in one byte


def probe_maps(folder: Path, results: pd.DataFrame) -> Json | None:
    """The section of maps, with all examples; None if the run wrote none.

    Raises ``ValueError`` if the files contradict each other.
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
    by_target = [_by_example(table[table["target"] == target]) for target in targets]
    examples = []
    for entry in maps.examples:
        name = str(entry["example"])
        classes = [[str(label) for label in entry["classes"].get(target, [])] for target in targets]
        own = [of_example.get(name) for of_example in by_target]
        known = [rows for rows in own if rows is not None]
        if not known:
            raise ValueError(f"{EXAMPLES} must contain examples of {MAPS}, got {name!r}. Run the sweep again.")
        height, width = (max(int(rows[axis].max()) + 1 for rows in known) for axis in ("row", "col"))
        packs = [
            None if rows is None else _pack(rows, labels, (len(choice["sites"]), height, width))
            for rows, labels, choice in zip(own, classes, choices, strict=True)
        ]
        examples.append(
            {
                "name": name,
                "question": str(entry.get("question", "")),
                "answer": str(entry.get("answer", "")),
                "labels": {str(key): str(value) for key, value in entry.get("labels", {}).items()},
                "boxes": entry.get("boxes") or {},
                "focus": entry.get("focus"),
                "shape": [height, width],
                "classes": classes,
                "packed": packs,
                "picture": thumbnail(maps.picture(entry), side),
            }
        )
    scale = {"colours": colour_scale(SEQUENTIAL), "low": 0, "high": 1, "label": "probability of the example's label"}
    caption = (
        "Probability that the probe gives to the example's own label when it reads one patch alone, to three decimals. "
        f"The probe was fitted on pooled tokens ({_fitted_on(results, targets)}) of other examples that share no group "
        "with these. These are single examples, without intervals."
    )
    section = maps_section(caption, "target", scale, choices, examples)
    return {**section, "start": _start(results, choices)}


def _start(results: pd.DataFrame, choices: list[Json]) -> Json:
    """The target and the site of the map to show first: the significant peak with the largest gain over chance.

    Peaks of the language model come first, since its layers are what a sweep compares; the last site if there is none.
    """
    summary = summarise(results)
    mapped = {choice["label"]: number for number, choice in enumerate(choices)}
    found = summary[summary["target"].isin(list(mapped)) & (summary["peak"] != NONE) & summary["score"].notna()]
    of_model = found[(found["part"] == "language_model") & (found["name"] == main_name(results))]
    found = found if of_model.empty else of_model
    if found.empty:
        return {"choice": 0, "site": len(choices[0]["sites"]) - 1}
    gain = (found["score"] - found["chance"]).to_numpy(dtype=float)
    best = found.iloc[int(gain.argmax())]
    rows = results[
        (results["split"] == "cv") & (results["target"] == best["target"]) & (results["part"] == best["part"])
    ]
    curve = rows[curve_names(rows) == best["name"]]
    site = str(curve["site"].iloc[int(curve["score"].to_numpy(dtype=float).argmax())])
    number = mapped[str(best["target"])]
    places = [place for place, entry in enumerate(choices[number]["sites"]) if entry["site"] == site]
    return {"choice": number, "site": places[0] if places else 0}


def _fitted_on(results: pd.DataFrame, targets: list[str]) -> str:
    """The token group that each target's probe was fitted on; one entry if it is the same for all targets."""
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


def _by_example(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of a target by example, with sites as numbers and predicted labels as categories."""
    numbered = rows.assign(
        site=pd.factorize(rows["site"])[0], predicted=rows["predicted"].astype(str).astype("category")
    )
    return {str(name): group for name, group in numbered.groupby("example", sort=False)}


def _pack(rows: pd.DataFrame, classes: list[str], size: tuple[int, int, int]) -> str:
    """Probabilities and numbers of predicted classes of an example, by site, row and column."""
    place = np.ravel_multi_index((rows["site"], rows["row"], rows["col"]), size)
    if not np.array_equal(np.bincount(place, minlength=int(np.prod(size))), np.ones(np.prod(size))):
        raise ValueError(f"{MAPS} must contain each patch of each site once, got {len(rows)} rows for {size}.")
    unknown = sorted(set(rows["predicted"].unique()) - set(classes))
    if unknown:
        raise ValueError(f"predicted must be one of the classes in {EXAMPLES}, got {unknown[0]!r}. Sweep again.")
    probability = np.zeros(size, dtype=np.float64)
    predicted: npt.NDArray[Any] = np.zeros(size, dtype=np.uint8 if len(classes) <= _BYTE else np.uint16)
    probability.flat[place] = rows["p_true"]
    predicted.flat[place] = rows["predicted"].cat.set_categories(classes).cat.codes
    return packed(quantise(probability), predicted)
