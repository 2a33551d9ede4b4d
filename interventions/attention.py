"""The attention whose edges a knockout cuts, saved beside the run: which patches each head of each position reads.

``plan_attention(...)`` chooses pairs and positions before anything runs, ``write_attention(...)`` runs the clean
pictures and writes ``attention.safetensors`` and ``attention.json``. Figures and the report draw them beside what the
cuts do.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from interventions.config import ATTENTION, ATTENTION_TEXT
from interventions.operations.knockout import ends
from interventions.pairs import Pair
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from models.capture import capture
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.sites import Site
from records.manifest import commit
from tasks.checksums import is_whole
from tasks.errors import UserError

DEFAULT_PAIRS = 3
MOST_BYTES = 64 * 2**20  # of the attention of a run


@dataclass(frozen=True, eq=False)
class Flow:
    """The edges of one knockout in one example: queries at ``positions``, keys at ``patches`` of the first picture."""

    tokens: str
    positions: tuple[int, ...]
    """Columns of the batch; those of the answer only if the target has no others."""
    patches: tuple[int, ...]
    """Numbers in the patch grid, row by row."""


@dataclass(frozen=True, eq=False)
class PairAttention:
    """What is saved of one pair: the clean example as a batch of one, the positions, and the edges of each knockout."""

    pair: Pair
    inputs: Inputs
    positions: tuple[int, ...]
    """Columns of the batch, in order."""
    flows: tuple[Flow, ...]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The attention that a run saves."""

    layers: tuple[int, ...]
    """The layers that name the cells' windows."""
    heads: tuple[str, ...]
    """The sets of heads of the cells, such as ``"3"`` or ``"0+3"``."""
    pairs: tuple[PairAttention, ...]
    n_patches: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the attention, in float32."""
        n = sum(len(pair.positions) for pair in self.pairs)
        return 4 * len(self.layers) * len(self.heads) * n * self.n_patches


def plan_attention(
    llava: Llava,
    specs: Sequence[CellSpec],
    pairs: Sequence[Pair],
    *,
    wanted: int | None,
    preprocess: Preprocess = "pad",
) -> AttentionPlan | None:
    """The attention to save of the first pairs; None if there is none: ``wanted`` is 0, or no cut edge reads a patch.

    Args:
        llava: The model.
        specs: The cells of a knockout of single heads.
        pairs: The pairs of the run.
        wanted: The number of pairs; None for three, or as many of them as fit into ``MOST_BYTES``.
        preprocess: See ``prepare``.

    Raises:
        UserError: If ``wanted`` is given and the attention does not fit, or no cut edge reads a patch.
    """
    layers = tuple(sorted({spec.layer for spec in specs if spec.layer is not None}))
    heads = tuple(dict.fromkeys(spec.head for spec in specs if spec.head is not None))
    groups = tuple(dict.fromkeys(spec.tokens for spec in specs if spec.tokens))
    n_patches = llava.grid[0] * llava.grid[1]
    found: list[PairAttention] = []
    for pair in pairs[: DEFAULT_PAIRS if wanted is None else wanted]:
        one = _edges(llava, pair, groups, preprocess)
        if one is None:
            if wanted:
                raise UserError("attention needs cut edges that read patches of a picture, got none. Leave it out.")
            return None
        plan = AttentionPlan(layers, heads, (*found, one), n_patches)
        if plan.n_bytes > MOST_BYTES:
            if wanted is None:
                break
            raise UserError(
                f"attention must fit into {MOST_BYTES // 2**20} MB, got {plan.n_bytes / 2**20:.0f} MB for the first "
                f"{len(plan.pairs)} of {wanted} pairs. Save fewer pairs, or run fewer layers, heads or positions."
            )
        found.append(one)
    return AttentionPlan(layers, heads, tuple(found), n_patches) if found else None


def read_edges(llava: Llava, plan: AttentionPlan, pair: PairAttention) -> Float[Tensor, "layer head pos patch"]:
    """The attention of the clean run, in float32: the weight that each position gives to each patch of its picture.

    A set of several heads has the mean over its heads.
    """
    mask = torch.zeros_like(pair.inputs.input_ids, dtype=torch.bool)
    mask[0, list(pair.positions)] = True
    sites = [Site("language_model", layer, "pattern") for layer in plan.layers]
    found = capture(llava, pair.inputs, sites, tokens=mask)
    layout = pair.inputs.layout[0]
    span = layout.images[0]
    keys = slice(span.start - layout.real.start, span.stop - layout.real.start)
    layers = []
    for site in sites:
        weights = found[site][0, :, :, keys].float()  # pos head patch
        sets = [weights[:, [int(head) for head in text.split("+")]].mean(1) for text in plan.heads]
        layers.append(torch.stack(sets))
    return torch.stack(layers).cpu()


def write_attention(llava: Llava, plan: AttentionPlan, folder: Path) -> None:
    """Write ``attention.safetensors`` (pair number -> layer, head, position, patch) and ``attention.json``.

    Files that are there and whole are kept.
    """
    if is_whole(folder / ATTENTION) and is_whole(folder / ATTENTION_TEXT):
        return
    values = {str(k): read_edges(llava, plan, pair).contiguous() for k, pair in enumerate(plan.pairs)}
    about = {
        "layers": list(plan.layers),
        "heads": list(plan.heads),
        "grid": list(llava.grid),
        "pairs": [_about(llava, k, pair) for k, pair in enumerate(plan.pairs)],
    }
    commit(folder / ATTENTION, save(values))
    commit(folder / ATTENTION_TEXT, json.dumps(about, ensure_ascii=False, indent=1).encode())


def _edges(llava: Llava, pair: Pair, groups: Sequence[str], preprocess: Preprocess) -> PairAttention | None:
    """The edges of every knockout that end at patches of the first picture; None if there are none."""
    inputs = prepare(llava, [pair.clean], preprocess=preprocess, answers=True)
    if not inputs.layout[0].images:
        return None
    span = inputs.layout[0].images[0]
    masks = Masks(llava, inputs, [pair.clean])
    flows = []
    for tokens in groups:
        queries, keys = ends(tokens, masks)
        reached = [int(at) for at in queries[0].nonzero().flatten() if at >= span.stop]
        # The cut also applies to the answer's tokens after ``last``; what they attend to is another question.
        positions = [at for at in reached if at < inputs.layout[0].prompt_stop] or reached
        patches = [int(at) - span.start for at in keys[0].nonzero().flatten() if span.start <= at < span.stop]
        if positions and patches:
            flows.append(Flow(tokens, tuple(positions), tuple(patches)))
    every = sorted({at for flow in flows for at in flow.positions})
    return PairAttention(pair, inputs, tuple(every), tuple(flows)) if flows else None


def _about(llava: Llava, k: int, pair: PairAttention) -> Mapping[str, Any]:
    """What ``attention.json`` says about a pair; positions count from the row's first real token."""
    start = pair.inputs.layout[0].real.start
    ids = pair.inputs.input_ids[0]
    number = {at: index for index, at in enumerate(pair.positions)}
    return {
        "k": k,
        "id": pair.pair.id,
        "positions": [at - start for at in pair.positions],
        "words": [str(llava.tokenizer.decode([int(ids[at])])) for at in pair.positions],
        "flows": [
            {
                "tokens": flow.tokens,
                "positions": [number[at] for at in flow.positions],
                "patches": list(flow.patches) if len(flow.patches) < llava.grid[0] * llava.grid[1] else None,
            }
            for flow in pair.flows
        ],
    }
