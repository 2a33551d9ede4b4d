"""Layers and parts on one axis: which sites of a probe sweep form a curve, and the place of each site."""

from typing import NamedTuple

import numpy as np
import pandas as pd

PARTS = ("vision_tower", "projector", "language_model")
PROJECTOR_STAGES = ("in", "linear_1", "act", "out")
ENTRY = -1.0  # place of the language model's input (resid_pre of block 0), one step before block 0's output
_GAP = 0.06  # empty space between two parts, as a share of the longest part
_STAGE_STEP = 1.4  # step between the projector's stages, wide enough for labels that are words
_NARROWEST = 0.25  # smallest width of a part of several steps, as a share of the longest: room for its name


class Span(NamedTuple):
    """The place of a part on the shared axis: its steps lie at ``offset + scale * step``."""

    part: str
    offset: float
    left: float
    right: float
    scale: float


def layers_of(ranges: str) -> list[int]:
    """Parse the layers in a saved table: ``1,4-6`` is [1, 4, 5, 6].

    The text is not checked, since commands of this project wrote it; ``models.layer_ranges`` parses user input.
    """
    ends = [piece.split("-") for piece in ranges.split(",")]
    return [layer for piece in ends for layer in range(int(piece[0]), int(piece[-1]) + 1)]


def names_in_blocks(results: pd.DataFrame) -> list[str]:
    """The names of block activations in the table, starting with the one that ``main_name`` picks."""
    sites = results[results["part"].isin(PARTS)]
    first = main_name(sites)
    others = sites[sites["layer"].notna()]
    others = others[~belongs(others, first)]
    return [first, *dict.fromkeys(str(name) for name in others["name"])]


def main_name(sites: pd.DataFrame) -> str:
    """The block activation with the most layers; on a tie ``resid_post``, else the first."""
    blocks = sites[sites["layer"].notna()]
    if blocks.empty:
        return str(sites["name"].iloc[0])
    counts = blocks.drop_duplicates(["part", "layer", "name"])["name"].value_counts()
    best = list(counts[counts == counts.max()].index)
    return "resid_post" if "resid_post" in best else str(best[0])


def belongs(sites: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """True for the rows of one curve: the activation, the projector's stages, and the input of the language model."""
    enters = (sites["part"] == "language_model") & (sites["name"] == "resid_pre") & (sites["layer"] == 0)
    return (sites["name"] == name) | (sites["part"] == "projector") | (enters & (name == "resid_post"))


def place_parts(sites: pd.DataFrame) -> list[Span]:
    """The place of each probed part on the shared axis, in the order of the forward pass.

    A step of the longest part has width 1. Short parts are stretched to make room for their labels.
    """
    ends = {}
    for part in PARTS:
        rows = sites[sites["part"] == part]
        if not rows.empty:
            steps = steps_of(rows)
            ends[part] = float(steps.min()), float(steps.max())
    longest = max(high - low for low, high in ends.values())
    spans, cursor = [], 0.0
    for part, (low, high) in ends.items():
        scale = max(1.0, _NARROWEST * longest / (high - low)) if high > low else 1.0
        right = cursor + scale * (high - low)
        spans.append(Span(part, cursor - scale * low, cursor, right, scale))
        cursor = right + max(1.5, 1.0 + _GAP * longest)
    return spans


def steps_of(rows: pd.DataFrame) -> "pd.Series[float]":
    """The step of each row in its part: the layer, the stage of the projector, or ``ENTRY`` for the model's input."""
    n_layers = rows["layer"].max()
    last = 0.0 if pd.isna(n_layers) else float(n_layers) + 1.0

    def step(part: str, layer: float, name: str) -> float:
        if part == "projector":
            return _STAGE_STEP * PROJECTOR_STAGES.index(name)
        if np.isnan(layer):
            return last  # the final norm comes after the last block
        return ENTRY if name == "resid_pre" and part == "language_model" and layer == 0 else float(layer)

    values = [step(*row) for row in zip(rows["part"], rows["layer"].astype(float), rows["name"], strict=True)]
    return pd.Series(values, index=rows.index, dtype=float)


def stage_ticks(rows: pd.DataFrame) -> list[tuple[float, str]]:
    """Step and name of the projector's stages in the rows."""
    present = [stage for stage in PROJECTOR_STAGES if stage in set(rows["name"])]
    return [(_STAGE_STEP * PROJECTOR_STAGES.index(stage), stage.replace("_", " ")) for stage in present]
