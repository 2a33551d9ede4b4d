"""The report's sections on a lens sweep: hit rates by layer, and the words that lenses read at every patch."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from figures.layer_axis import ENTRY, steps_of
from figures.read_run import RunError, read_json, read_saved
from figures.report.curves import curve_panel, curves_section, drawn_values, site_axis
from figures.report.palette import dashes
from figures.report.pictures import colour_scale, packed, quantise, thumbnail
from figures.report.tables import plain_value
from figures.style import SEQUENTIAL

Json = dict[str, Any]
TOKENS, EXAMPLES, PICTURES = "tokens.parquet", "examples.json", "pictures"
STEPS = 200  # steps of a word's probability or similarity on the page
_MOST_WORDS = 2**16
_SIDES = ((24, 224), (10**9, 112))  # largest number of examples, and the side of their pictures in pixels
_SERIES = (
    ("object inside", "object's words, inside its box", "score", True),
    ("object outside", "object's words, outside", "transfer", True),
    ("other inside", "another example's words, inside", "control", False),
    ("frequency inside", "words of like frequency, inside", "pixels", False),
    ("random_init inside", "randomly initialised model, inside", "random_init", False),
)


def lens_curves(results: pd.DataFrame) -> Json:
    """Hit rates by layer with intervals and controls, one panel for each lens and split, for every metric."""
    choices = []
    for metric in ("hit@5", "hit@1", "hit@10", "mrr"):
        rows = results[results["metric"] == metric]
        panels = []
        for lens in dict.fromkeys(rows["lens"]):
            for split in dict.fromkeys(rows["split"]):
                own = rows[(rows["lens"] == lens) & (rows["split"] == split)]
                axis = site_axis(own)
                series = {
                    key: points
                    for key, *_ in _SERIES
                    if (points := _points(own[own["words"] + " " + own["place"] == key], axis.places))
                }
                top = max([0.05, *(value for value in drawn_values(series, {}))])
                n = int(own.loc[own["place"] == "inside", "n_groups"].max())
                panels.append(curve_panel(f"{lens} lens, {split}", f"n = {n}", axis.x, metric, (0.0, top), series, {}))
        choices.append({"label": metric, "panels": panels})
    named = [
        {"key": key, "label": label, "colour": colour, "mark": mark, "dash": None if mark else dashes(colour)}
        for key, label, colour, mark in _SERIES
    ]
    caption = (
        "Share of patches where one of the lens's best words is the object's (mrr: mean of 1 / rank, 0 beyond 100). "
        "Bands: 95 % intervals over groups of examples, for each layer alone. Layers count from 0."
    )
    return curves_section("Words by layer", caption, named, choices, choose="metric")


def lens_words(folder: Path) -> Json | None:
    """The view of words over pictures, with all examples that the run kept; None if it kept none.

    Raises ``RunError`` or ``ValueError`` if the files cannot be read or contradict each other.
    """
    if not (folder / TOKENS).is_file() or not (folder / EXAMPLES).is_file():
        return None
    tokens, about = read_saved(folder / TOKENS), _read_examples(folder)
    if tokens.empty or not about:
        return None
    tokens = tokens.assign(part="language_model", word=[_shown(word) for word in tokens["word"]])
    side = next(side for most, side in _SIDES if len(about) <= most)
    lenses = [str(lens) for lens in dict.fromkeys(tokens["lens"])]
    choices, packs = [], []
    for lens in lenses:
        own = tokens[tokens["lens"] == lens]
        codes, words = pd.factorize(own["word"])
        if len(words) > _MOST_WORDS:
            raise ValueError(
                f"words must be at most {_MOST_WORDS:,} for a page, got {len(words):,}. Keep fewer examples."
            )
        k = int(own["rank"].max())
        choice = {**_sites(own), "label": lens, "chance": None, "words": [str(word) for word in words], "k": k}
        choices.append(choice)
        numbered = own.assign(word=codes, site=pd.factorize(own["site"])[0])
        packs.append({str(name): part for name, part in numbered.groupby("example", sort=False)})
    examples = []
    for entry in about:
        name = str(entry["example"])
        mine = [pack.get(name) for pack in packs]
        known = [rows for rows in mine if rows is not None]
        if not known:
            raise ValueError(f"{EXAMPLES} must contain examples of {TOKENS}, got {name!r}. Run the sweep again.")
        height, width = (max(int(rows[axis].max()) + 1 for rows in known) for axis in ("row", "col"))
        examples.append(
            {
                "name": name, "question": "", "answer": "", "labels": {"word": str(entry["word"])},
                "forms": [str(form) for form in entry["forms"]], "boxes": entry.get("boxes") or {},
                "focus": entry.get("focus"), "shape": [height, width],
                "packed": [
                    None if rows is None else _pack(rows, (len(choice["sites"]), height * width, choice["k"]), width)
                    for rows, choice in zip(mine, choices, strict=True)
                ],
                "picture": thumbnail(folder / PICTURES / f"{entry['k']}.png", side),
            }
        )  # fmt: skip
    scale = {
        "colours": colour_scale(SEQUENTIAL),
        "low": 0,
        "high": 1,
        "label": "probability that the word is the object's",
    }
    caption = (
        "Each patch is painted with the probability that the lens gives to the words of the object in focus (latent "
        "lens: the share of the ten nearest texts that are one of them). Point at a patch, or walk with the arrow "
        "keys: the list shows its best words in every layer. These are single examples, without intervals."
    )
    text = {"type": "maps", "title": "Words at the patches", "caption": caption, "choose": "lens"}
    return {**text, "scale": scale, "choices": choices, "examples": examples}


def _points(rows: pd.DataFrame, places: dict[str, tuple[float, int]]) -> list[list[Any]]:
    found = [
        [places[str(row["site"])][0], *(plain_value(row[name]) for name in ("score", "lower", "upper")),
         places[str(row["site"])][1], str(row["site"])]
        for row in rows.to_dict("records")
    ]  # fmt: skip
    return sorted(found, key=lambda point: float(point[0]))


def _sites(rows: pd.DataFrame) -> Json:
    """The sites of a lens in the order of the table, and their axis."""
    sites = rows.drop_duplicates("site")[["part", "site", "name", "layer"]]
    axis = site_axis(sites)
    entries = []
    for row, step in zip(sites.to_dict("records"), steps_of(sites), strict=True):
        site = str(row["site"])
        place, part = axis.places[site]
        short = "input" if step == ENTRY else str(int(row["layer"]))
        label = "input of the language model" if step == ENTRY else f"layer {short}"
        entries.append({"site": site, "label": label, "short": short, "x": place, "part": part})
    return {"sites": entries, "x": axis.x}


def _pack(rows: pd.DataFrame, size: tuple[int, int, int], width: int) -> str:
    """Probabilities of the object's words by site and patch, then numbers and strengths of the words by rank."""
    n_sites, n_patches, k = size
    patch = rows["row"].to_numpy() * width + rows["col"].to_numpy()
    place = np.ravel_multi_index((rows["site"].to_numpy(), patch, rows["rank"].to_numpy() - 1), size)
    if len(place) != n_sites * n_patches * k or len(np.unique(place)) < len(place):
        raise ValueError(f"{TOKENS} must contain each rank of each patch once, got {len(place)} rows for {size}.")
    order = np.argsort(place)
    own = np.asarray(rows["p_object"], dtype=np.float64)[order].reshape(size)[:, :, 0]
    words: npt.NDArray[np.uint16] = np.asarray(rows["word"], dtype=np.uint16)[order]
    strength = np.clip(np.asarray(rows["strength"], dtype=np.float64)[order], 0.0, 1.0)
    return packed(quantise(own), words, np.rint(strength * STEPS).astype(np.uint8))


def _shown(word: object) -> str:
    """A word as the page shows it; white space as Python writes it."""
    return str(word).strip() or repr(str(word))


def _read_examples(folder: Path) -> list[dict[str, Any]]:
    about = read_json(folder / EXAMPLES)
    keys = {"k", "example", "word", "forms"}
    if not isinstance(about, list) or not all(isinstance(entry, dict) and keys <= entry.keys() for entry in about):
        raise RunError(f"{EXAMPLES} must be a list of examples, got another value in {str(folder)!r}. Run it again.")
    for entry in about:
        if type(entry["k"]) is not int:
            raise RunError(f"k must be the number of a picture of the run, got {entry['k']!r}. Run it again.")
    return about
