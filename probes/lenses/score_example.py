"""What lenses say about one example: ranks of words at every patch, the top words, and the nearest text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.inputs import prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.sites import Site
from models.tokens import token_mask
from probes.lenses.latent import LatentLens, block_of
from probes.lenses.reading import Transport, lens_logits
from probes.maps.write import patches_of_first
from tasks.example import Example

DEEPEST = 100  # ranks below this count as not found, for every lens
_ROUND = 2048  # patches whose logits are in memory at a time
COLUMNS = (
    "lens", "id", "group", "split", "site", "place", "words", "patches", "hit@1", "hit@5", "hit@10", "reciprocal_rank",
)  # fmt: skip
NEAREST = ("lens", "id", "group", "split", "site", "patches", "middle", "depth", "index_middle")


@dataclass(frozen=True)
class Wanted:
    """The words to look for in one example, by kind: ``object``, ``other``, ``frequency`` or ``random_init``."""

    tokens: Mapping[str, tuple[int, ...]]
    """Word-start tokens, for lenses that predict words."""
    forms: Mapping[str, tuple[str, ...]]
    """Words, for the latent lens."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Everything that one lens says at one site: axes ``patch`` or ``patch k``."""

    ranks: Mapping[str, npt.NDArray[np.int64]]
    """The rank of the best of the words of each kind, from 0."""
    top: npt.NDArray[np.int64]
    """Numbers of the top tokens: of the vocabulary, or of the index."""
    strength: npt.NDArray[np.float64]
    """Their probabilities or similarities."""
    neighbour: npt.NDArray[np.int64] | None
    """The block of each neighbour, -1 for the input; None for lenses that predict words."""
    p_object: npt.NDArray[np.float64]
    """The probability of the object's words: their sum, or the share of the nearest ten that are one of them."""


def read_example(
    llava: Llava,
    lenses: Sequence[Transport | LatentLens],
    sites: Sequence[Site],
    example: Example,
    wanted: Wanted,
    *,
    top_k: int,
    preprocess: Preprocess = "pad",
) -> tuple[npt.NDArray[np.bool_], dict[tuple[str, Site], Reading]]:
    """Which patches of the first picture lie in the box, and the reading of every lens and site that it reads."""
    inputs = prepare(llava, [example], preprocess=preprocess)
    mask = patches_of_first(llava, inputs)
    found = llava.capture(inputs, list(sites), tokens=mask)
    box = token_mask(inputs, "object", llava, [example]).cpu()[mask]
    readings: dict[tuple[str, Site], Reading] = {}
    with torch.inference_mode():
        for site in sites:
            resid = found[site][0]
            for lens in lenses:
                if not lens.reads(site, llava.n_layers):
                    continue
                if isinstance(lens, LatentLens):
                    readings[lens.name, site] = _nearest(lens, resid, wanted, top_k)
                else:
                    readings[lens.name, site] = _predicted(lens, llava, resid, site, wanted, top_k)
    return box.numpy(), readings


def score_rows(
    readings: Mapping[tuple[str, Site], Reading], inside: npt.NDArray[np.bool_], example: Example, split: str
) -> pd.DataFrame:
    """Sums over the patches inside and outside the box, for every lens, site and kind of words."""
    about = {"id": example.id, "group": example.group, "split": split}
    rows: list[dict[str, Any]] = []
    for (lens, site), reading in readings.items():
        for place, patches in (("inside", inside), ("outside", ~inside)):
            for kind, ranks in reading.ranks.items():
                own = ranks[patches]
                hits = {f"hit@{k}": int((own < k).sum()) for k in (1, 5, 10)}
                reciprocal = float(np.where(own < DEEPEST, 1 / (own + 1), 0.0).sum())
                rows.append(
                    {
                        "lens": lens, **about, "site": str(site), "place": place, "words": kind,
                        "patches": int(patches.sum()), **hits, "reciprocal_rank": reciprocal,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def nearest_rows(
    readings: Mapping[tuple[str, Site], Reading],
    lenses: Sequence[Transport | LatentLens],
    example: Example,
    split: str,
    n_layers: int,
) -> pd.DataFrame:
    """For the latent lens: how many of the patches' nearest texts lie in the middle third of the layers, and how deep.

    The depth of a text activation is 0 at the language model's input and 1 at the last block's output; the middle third
    is from 1/3 to 2/3. ``index_middle`` is the share of the index's layers that lie there.
    """
    index = {lens.name: _in_middle(np.array(lens.depths)) for lens in lenses if isinstance(lens, LatentLens)}
    rows = []
    for (lens, site), reading in readings.items():
        if reading.neighbour is not None:
            depth = (reading.neighbour[:, 0] + 1) / n_layers
            rows.append(
                {
                    "lens": lens, "id": example.id, "group": example.group, "split": split, "site": str(site),
                    "patches": len(depth), "middle": int(_in_middle(depth).sum()), "depth": float(depth.sum()),
                    "index_middle": float(index[lens].mean()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(NEAREST))


def _in_middle(depth: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.asarray((depth > 1 / 3 - 1e-9) & (depth < 2 / 3 + 1e-9))


def token_rows(
    llava: Llava,
    lenses: Sequence[Transport | LatentLens],
    readings: Mapping[tuple[str, Site], Reading],
    example: Example,
    top_k: int,
) -> pd.DataFrame:
    """The ``top_k`` words of every lens, site and patch, one row for each."""
    columns = llava.grid[1]
    index = {lens.name: lens for lens in lenses}
    tables = []
    for (name, site), reading in readings.items():
        lens = index[name]
        n, k = reading.top.shape[0], min(top_k, reading.top.shape[1])
        numbers = reading.top[:, :k].ravel().tolist()
        near = reading.neighbour
        words = [
            lens.words[number] if isinstance(lens, LatentLens) else str(llava.tokenizer.decode([number]))
            for number in numbers
        ]
        blocks = [None] * (n * k) if near is None else near[:, :k].ravel().tolist()
        patch = np.repeat(np.arange(n), k)
        tables.append(
            pd.DataFrame(
                {
                    "lens": name, "example": example.id, "site": str(site), "name": site.name, "layer": site.layer,
                    "row": patch // columns, "col": patch % columns, "rank": np.tile(np.arange(1, k + 1), n),
                    "word": words, "strength": reading.strength[:, :k].ravel().astype(np.float32),
                    "neighbour_layer": pd.array(blocks, dtype="Int64"),
                    "p_object": np.repeat(reading.p_object, k).astype(np.float32),
                }
            )
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def _predicted(
    lens: Transport, llava: Llava, resid: Float[Tensor, "patch d_model"], site: Site, wanted: Wanted, top_k: int
) -> Reading:
    ranks: dict[str, list[Tensor]] = {kind: [] for kind in wanted.tokens}
    tops, strengths, objects = [], [], []
    for chunk in resid.split(_ROUND):
        logits = lens_logits(lens, llava, chunk, site).float()
        probability = logits.softmax(-1)
        for kind, tokens in wanted.tokens.items():
            ranks[kind].append(best_rank(logits, tokens))
        top = probability.topk(top_k, dim=-1)
        tops.append(top.indices)
        strengths.append(top.values)
        own = list(wanted.tokens["object"])
        objects.append(probability[:, own].sum(-1))
    return Reading(
        {kind: torch.cat(found).cpu().numpy() for kind, found in ranks.items()},
        torch.cat(tops).cpu().numpy(), torch.cat(strengths).double().cpu().numpy(), None,
        torch.cat(objects).double().cpu().numpy(),
    )  # fmt: skip


def best_rank(logits: Float[Tensor, "patch vocab"], tokens: Sequence[int]) -> Int[Tensor, " patch"]:
    """The rank, from 0, of the most likely of some tokens: how many of the vocabulary are more likely.

    Example:
        >>> best_rank(torch.tensor([[0.1, 0.7, 0.2]]), [0, 2]).tolist()
        [1]
    """
    if not tokens:
        return torch.full((len(logits),), logits.shape[-1], dtype=torch.int64, device=logits.device)
    best = logits[:, list(tokens)].amax(-1, keepdim=True)
    return (logits > best).sum(-1)


def _nearest(lens: LatentLens, resid: Float[Tensor, "patch d_model"], wanted: Wanted, top_k: int) -> Reading:
    n_entries = lens.vectors.shape[0] * lens.vectors.shape[1]
    near = lens.search(resid, k=min(max(DEEPEST, top_k), n_entries))
    token = near.token.cpu().numpy()
    words = np.array(lens.words, dtype=object)[token]
    ranks = {}
    for kind, forms in wanted.forms.items():
        hit = np.isin(words.astype(str), list(forms)) if forms else np.zeros(words.shape, dtype=bool)
        ranks[kind] = np.where(hit.any(1), hit.argmax(1), DEEPEST).astype(np.int64)
        if kind == "object":
            share = hit[:, :10].mean(1)
    blocks = np.array([block_of(site) for site in lens.sites])
    return Reading(ranks, token, near.similarity.double().cpu().numpy(), blocks[near.place.cpu().numpy()], share)
