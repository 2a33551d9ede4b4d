"""Path patching: what one head tells later heads directly, through their queries, keys or values.

The sender's output is taken from the other run; everything between it and the receivers stays at its base values, so
the receivers' input changes by the sender's own words alone. Then the receivers' q, k or v are written into the base
run, and the rest of the model answers.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interventions.engines.edits import Cell, Write
from interventions.plan.groups import Masks
from models.hooks import recorded
from models.inputs import Inputs
from models.llava import Llava
from models.precision import fast_bfloat16
from models.sites import Site, check_site
from tasks.errors import UserError
from tasks.example import Example

Entrance = Literal["q", "k", "v"]


class Head(NamedTuple):
    """A head of the language model; under grouped queries, keys and values have heads of their own."""

    layer: int
    head: int


def path_cells(
    llava: Llava,
    inputs: Inputs,
    other: Inputs,
    senders: Sequence[Head],
    receivers: Sequence[Head],
    entrance: Entrance,
    *,
    tokens: str = "last",
    sender_tokens: str = "all",
    examples: Sequence[Example] | None = None,
) -> list[Cell]:
    """For each sender the edits that let all receivers hear it as in the other run.

    Attention layers and MLPs between are frozen, so the path is the residual stream alone. (Wang et al. recompute the
    MLPs in between, and so count paths through them.)

    Args:
        llava: The model.
        inputs: The base run, which is changed.
        other: The run that senders speak as in.
        senders: Each on its own.
        receivers: All together, each in a later layer than every sender.
        entrance: Where they hear: queries, keys or values.
        tokens: Positions of the receivers.
        sender_tokens: Positions of the senders.
        examples: Those of the batch; needed for the group ``object``.

    Raises:
        ValueError: If a head is not there, a receiver is not later than a sender, or the runs do not stand alike.

    Source: Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593; Goldowsky-Dill et al. 2023, "Localizing
        Model Behavior with Path Patching", arXiv 2304.05969.
    """
    _check(llava, inputs, other, senders, receivers, entrance)
    masks = Masks(llava, inputs, examples)
    speaks, hears = masks.at("language_model", sender_tokens), masks.at("language_model", tokens)
    spoken = {Site("language_model", sender.layer, "z") for sender in senders}
    by_layer: dict[int, list[int]] = {}
    for receiver in receivers:
        by_layer.setdefault(receiver.layer, []).append(receiver.head)
    streams = {layer: Site("language_model", layer, "resid_pre") for layer in by_layer}
    theirs = _values(llava, other, spoken)
    ours = _values(llava, inputs, spoken | set(streams.values()))
    cells = []
    for sender in senders:
        site = Site("language_model", sender.layer, "z")
        change = (theirs[site] - ours[site])[:, :, sender.head] * speaks[..., None]
        words = _through_output(llava, site, sender.head, change)
        edits = []
        for layer, heads in by_layer.items():
            heard = _entrance(llava, inputs, layer, entrance, ours[streams[layer]] + words)
            edits.append(Write(Site("language_model", layer, entrance), hears, heard, tuple(sorted(set(heads)))))
        cells.append(Cell(tuple(edits)))
    return cells


def _values(llava: Llava, inputs: Inputs, sites: set[Site]) -> dict[Site, Tensor]:
    with torch.inference_mode(), fast_bfloat16(), recorded(llava, sites) as values:
        llava.model(**inputs.model_kwargs(), logits_to_keep=1, use_cache=False)
    return {site: value.clone() for site, value in values.items()}


def _through_output(
    llava: Llava, site: Site, head: int, z: Float[Tensor, "example pos d_head"]
) -> Float[Tensor, "example pos d_model"]:
    """What one head's z adds to the residual stream."""
    output = llava.module_at(site)
    assert isinstance(output, nn.Linear)
    width = z.shape[-1]
    with torch.inference_mode(), fast_bfloat16():
        return torch.nn.functional.linear(z, output.weight[:, head * width : (head + 1) * width])


def _entrance(
    llava: Llava, inputs: Inputs, layer: int, entrance: Entrance, resid: Float[Tensor, "example pos d_model"]
) -> Float[Tensor, "example pos head d_head"]:
    """The q, k or v of a block that is given a residual stream: the block runs, and only they are kept."""
    site = Site("language_model", layer, entrance)
    with torch.inference_mode(), fast_bfloat16(), recorded(llava, [site]) as values:
        rotary = llava.rotary(resid, inputs.position_ids)
        llava.blocks[layer](resid, attention_mask=None, position_embeddings=rotary)
    return values[site].clone()


def _check(
    llava: Llava,
    inputs: Inputs,
    other: Inputs,
    senders: Sequence[Head],
    receivers: Sequence[Head],
    entrance: Entrance,
) -> None:
    if entrance not in ("q", "k", "v"):
        raise UserError(f"entrance must be q, k or v, got {entrance!r}. Receivers hear through one of them.")
    if not senders or not receivers:
        raise UserError(f"senders and receivers must not be empty, got {len(senders)} and {len(receivers)}. Name some.")
    n_receiving = llava.n_heads if entrance == "q" else llava.n_kv_heads
    for name, heads, n_heads in (("sender", senders, llava.n_heads), ("receiver", receivers, n_receiving)):
        for layer, head in heads:
            check_site(Site("language_model", layer, "z"), llava)
            if not 0 <= head < n_heads:
                raise UserError(
                    f"head of a {name} must be in [0, {n_heads}) for {llava.id}, got {head}. Keys and values may have "
                    "fewer heads than queries."
                )
    latest, earliest = max(s.layer for s in senders), min(r.layer for r in receivers)
    if earliest <= latest:
        raise UserError(
            f"receivers must stand in later layers than senders, got a receiver in layer {earliest} and a sender in "
            f"layer {latest}. A head hears only layers below it."
        )
    if inputs.input_ids.shape != other.input_ids.shape or not torch.equal(inputs.position_ids, other.position_ids):
        raise UserError(
            f"other must stand like inputs, got batches of {tuple(inputs.input_ids.shape)} and "
            f"{tuple(other.input_ids.shape)}. Pairs need prompts of equal length."
        )
