"""The report's view of attention: painted on the picture, beside what cutting the same edges does."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from figures.attention.saved import OF_PATCH, Flow, SavedAttention, edge_effects, read_attention
from figures.effects import count_pairs, fraction_name, layer_label, token_title
from figures.read_run import read_pair_values, read_saved
from figures.report.patch_maps import by_metric, effect_cell, effect_scale
from figures.report.pictures import colour_scale, packed, thumbnail
from figures.report.tables import plain_value
from figures.style import SEQUENTIAL
from tasks.files import is_file

Json = dict[str, Any]
STEPS = 65_535  # steps of an attention weight on the page
_SIDE = 336  # pixels of a picture
_LACKING = ("effect_lower", "effect_upper", "p_adjusted")  # of single pairs
_MOST_WORDS = 28  # letters of a position's text in a menu


def attention_view(folder: Path, results: pd.DataFrame) -> Json | None:
    """Pairs, layers, heads and positions with their attention and effects; None if the run saved no attention.

    Args:
        folder: The run directory.
        results: Its table.

    Raises:
        RunError: If the files cannot be read.
        ValueError: If they contradict each other.
    """
    saved = read_attention(folder)
    values = read_pair_values(folder) if saved else None
    heads = results[results["head"].notna() & (results["head"].astype(str) != "")]
    if values is None or heads.empty:
        return None
    values = values.assign(unchanged=str(results["unchanged"].iloc[0]))
    pairs = read_saved(folder / "pairs.parquet").astype({"id": str}).set_index("id")
    rows = by_metric(heads)
    metrics = list(dict.fromkeys(map(str, rows["metric"])))
    first = saved[0]
    examples = []
    for one in saved:
        if one.id not in pairs.index:
            raise ValueError(f"attention must be of the run's pairs, got {one.id!r}. Run the sweep again.")
        told = pairs.loc[one.id]
        own = values[values["id"].astype(str) == one.id]
        picture = folder / "pictures" / f"{one.k}.png"
        examples.append(
            {
                "name": one.id, "question": str(told["question"]), "answer": f"{told['answer']} (foil: {told['foil']})",
                "shape": list(one.shape), "picture": thumbnail(picture, _SIDE) if is_file(picture) else "",
                "positions": [f"{at}: {_short(word)}" for at, word in zip(one.positions, one.words, strict=True)],
                "packed": _pack(one), "flows": [_flow(one, flow, own, metrics) for flow in _flows(one)],
            }
        )  # fmt: skip
    caption = (
        "On the picture: the weight that the chosen head gives to each patch, at the chosen position of the clean run. "
        "Beside it: what happens when these edges are cut in this layer and head, for every position of the target "
        "together. Below: both for every layer and head. Attention alone does not say what is used: a head may read a "
        "patch and change nothing. Click a cell, or walk with the arrow keys and press Enter, to choose it. These are "
        "single pairs, without intervals; the mean over all pairs has one."
    )
    means = {
        label: [_grid(rows[(rows["metric"] == metric) & (rows["tokens"] == label)], first) for metric in metrics]
        for label in dict.fromkeys(map(str, rows["tokens"]))
        if OF_PATCH.match(label) is None
    }
    windows = {int(row["layer"]): str(row["window"]) for row in rows.to_dict("records") if pd.notna(row["layer"])}
    return {
        "type": "attention", "title": "Attention, and what cutting it does", "caption": caption,
        "metrics": [metric.replace("_", " ") for metric in metrics], "across": layer_label(rows),
        "layers": list(first.layers), "windows": [windows.get(layer, str(layer)) for layer in first.layers],
        "heads": list(first.heads), "scale": effect_scale(rows), "means": means, "n": count_pairs(rows),
        "weights": {"colours": colour_scale(SEQUENTIAL), "low": 0, "high": 1, "label": "attention weight"},
        "effect": fraction_name(rows), "steps": STEPS, "examples": examples, "left_out": 0,
    }  # fmt: skip


def _flows(one: SavedAttention) -> list[Flow]:
    """The knockouts of a pair; those of single patches are one, whose patches are all of them."""
    found: dict[str, Flow] = {}
    for flow in one.flows:
        name = OF_PATCH.sub("patches->", flow.tokens)
        before = found.get(name)
        patches = flow.patches if before is None else tuple(sorted({*before.patches, *flow.patches}))
        found[name] = Flow(name, flow.positions, patches)
    return list(found.values())


def _flow(one: SavedAttention, flow: Flow, values: pd.DataFrame, metrics: list[str]) -> Json:
    """The edges of a knockout, and the effects of its cells in the pair, whose rows ``values`` holds."""
    patches = None if len(flow.patches) == one.shape[0] * one.shape[1] else list(flow.patches)
    about: Json = {
        "tokens": flow.tokens, "label": token_title(flow.tokens), "positions": list(flow.positions), "patches": patches,
    }  # fmt: skip
    if not flow.tokens.startswith("patches->"):
        rows = edge_effects(values, one, flow.tokens)
        about["cells"] = [_grid(rows[rows["metric"] == metric], one) for metric in metrics]
        return about
    n_patches = one.shape[0] * one.shape[1]
    grids: dict[str, list[list[list[Any]]]] = {
        metric: [[[None] * n_patches for _ in one.heads] for _ in one.layers] for metric in metrics
    }
    for single in one.flows:
        if OF_PATCH.sub("patches->", single.tokens) == flow.tokens:
            for row in edge_effects(values, one, single.tokens).to_dict("records"):
                at, of = one.layers.index(int(row["layer"])), one.heads.index(str(row["head"]))
                if row["metric"] in grids:
                    grids[row["metric"]][at][of][single.patches[0]] = plain_value(row["effect"])
    about["by_patch"] = list(grids.values())
    return about


def _grid(rows: pd.DataFrame, one: SavedAttention) -> list[list[Any]]:
    """By layer and head: effect, its interval, adjusted p and value; None where nothing was run."""
    grid: list[list[Any]] = [[None] * len(one.heads) for _ in one.layers]
    for row in rows.assign(**{name: np.nan for name in _LACKING if name not in rows}).to_dict("records"):
        if row["layer"] in one.layers and str(row["head"]) in one.heads:
            grid[one.layers.index(int(row["layer"]))][one.heads.index(str(row["head"]))] = effect_cell(row)
    return grid


def _pack(one: SavedAttention) -> str:
    """The weights by layer, head, position and patch, first all low bytes, then all high ones."""
    steps: npt.NDArray[np.uint16] = np.rint(np.clip(one.values, 0.0, 1.0) * STEPS).astype(np.uint16).ravel()
    return packed(np.stack([steps % 256, steps // 256]).astype(np.uint8))


def _short(word: str) -> str:
    """The text of a position as a menu shows it; white space as Python writes it."""
    shown = word.strip() or repr(word)
    return shown if len(shown) <= _MOST_WORDS else shown[: _MOST_WORDS - 1] + "…"
