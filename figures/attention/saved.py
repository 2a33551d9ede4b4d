"""The attention that a knockout of single heads saved, joined to what cutting the same edges did.

``read_attention(folder)`` gives one ``SavedAttention`` for each pair; ``edge_effects(values, attention, flow)`` the
effect of each layer and head in that pair.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load

from figures.effects import as_text, with_effect
from figures.patch_map import PATCH
from figures.read_run import RunError, read_json
from tasks.checksums import read_whole

FILE, TEXT = "attention.safetensors", "attention.json"
OF_PATCH = re.compile(rf"{PATCH.pattern}->")  # a knockout of the edges from one patch
_AGAIN = "Start the same command again: it is made anew."
Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Flow:
    """The edges that one knockout cuts, ``source->target``."""

    tokens: str
    positions: tuple[int, ...]
    """Indices into the saved positions."""
    patches: tuple[int, ...]
    """Numbers of the patches whose edges are cut, row by row."""


@dataclass(frozen=True, eq=False)
class SavedAttention:
    """The attention of one clean run over the patches of its picture."""

    k: int
    """Number of the pair, and of its picture."""
    id: str
    values: Values
    """``layer head position patch``: weights between 0 and 1."""
    layers: tuple[int, ...]
    heads: tuple[str, ...]
    positions: tuple[int, ...]
    """Positions of the prompt, from its first token."""
    words: tuple[str, ...]
    """The text of each position."""
    flows: tuple[Flow, ...]
    shape: tuple[int, int]
    """Rows and columns of the patch grid."""

    def summed(self, flow: Flow) -> npt.NDArray[np.float64]:
        """``layer head``: attention over the edges of a knockout, a mean over its positions of the sum over patches."""
        chosen = self.values[:, :, list(flow.positions)][..., list(flow.patches)]
        found: npt.NDArray[np.float64] = chosen.astype(np.float64).sum(-1).mean(-1)
        return found


def read_attention(folder: Path) -> tuple[SavedAttention, ...]:
    """The saved attention of a patch sweep, pair by pair; empty if the run saved none.

    Raises:
        RunError: If the files cannot be read or contradict each other.
    """
    if not (folder / FILE).is_file() or not (folder / TEXT).is_file():
        return ()
    about = read_json(folder / TEXT)
    try:
        tensors = load(read_whole(folder / FILE, advice=_AGAIN))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{FILE} must be readable, got {str(folder / FILE)!r} ({error}). {_AGAIN}") from error
    try:
        return tuple(_pair(about, entry, tensors) for entry in about["pairs"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{TEXT} must be as patch-sweep writes it, got {type(error).__name__}: {error} in {str(folder)!r}. {_AGAIN}"
        ) from error


def edge_effects(values: pd.DataFrame, attention: SavedAttention, tokens: str) -> pd.DataFrame:
    """The cells of a knockout in one pair, with the effect that figures draw.

    Args:
        values: ``values.parquet`` of the run, with the column ``unchanged``.
        attention: The pair.
        tokens: The knockout, such as ``"image->last"``.
    """
    own = values[(values["tokens"].astype(str) == tokens) & (values["id"].astype(str) == attention.id)]
    own = own[own["head"].notna()]
    return with_effect(as_text(own.astype({"metric": str, "tokens": str, "head": str, "window": str, "site": str})))


def _pair(
    about: Mapping[str, Any], entry: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
) -> SavedAttention:
    shape = int(about["grid"][0]), int(about["grid"][1])
    n_patches = shape[0] * shape[1]
    layers, heads = tuple(map(int, about["layers"])), tuple(map(str, about["heads"]))
    words, positions = tuple(map(str, entry["words"])), tuple(map(int, entry["positions"]))
    if type(entry["k"]) is not int or entry["k"] < 0:
        raise ValueError(f"k must be the number of a pair, got {entry['k']!r}")
    found = tensors[str(entry["k"])]
    wanted = len(layers), len(heads), len(positions), n_patches
    if found.shape != wanted or len(words) != len(positions) or not np.isfinite(found).all():
        raise ValueError(f"attention must be finite, of shape {wanted}, got {found.shape}")
    flows = []
    for flow in entry["flows"]:
        patches = tuple(range(n_patches)) if flow["patches"] is None else tuple(map(int, flow["patches"]))
        places = tuple(map(int, flow["positions"]))
        if (
            not places
            or not patches
            or max(places) >= len(positions)
            or not 0 <= min(patches) <= max(patches) < n_patches
        ):
            raise ValueError(f"edges must lie inside the prompt and the grid, got {flow['tokens']!r}")
        flows.append(Flow(str(flow["tokens"]), places, patches))
    if not flows or not layers or not heads:
        raise ValueError("attention must have a layer, a head and edges, got none")
    return SavedAttention(
        entry["k"], str(entry["id"]), found, layers, heads, positions, words, tuple(flows), shape
    )  # fmt: skip
