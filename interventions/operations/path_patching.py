"""Path patching: the direct effect of one head (the sender) on later heads (the receivers).

The sender's output is taken from the other run, and everything between sender and receivers is as in the base run. So
the receivers' input changes by the sender's contribution alone. The q, k or v that the receivers then compute are
written into the base run, and the rest of the model is run.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interventions.engines.edits import Cell, Write
from interventions.operations.choose_runs import check_positions
from interventions.plan.groups import Masks
from models.hooks import recorded
from models.inputs import Inputs
from models.llava import Llava
from models.precision import fast_bfloat16
from models.sites import Site, check_site
from tasks.errors import UserError
from tasks.example import Example

ReceiverInput = Literal["q", "k", "v"]


class Head(NamedTuple):
    """A head of the language model; for ``k`` and ``v`` under grouped queries, a key and value head."""

    layer: int
    head: int


def path_cells(
    llava: Llava,
    inputs: Inputs,
    other: Inputs,
    senders: Sequence[Head],
    receivers: Sequence[Head],
    receiver_input: ReceiverInput,
    *,
    tokens: str = "last",
    sender_tokens: str = "all",
    examples: Sequence[Example] | None = None,
) -> list[Cell]:
    """For each sender, the cell that passes its output in the other run to all receivers.

    Attention layers and MLPs in between are frozen, so the path is the residual stream only. (Wang et al. recompute
    these MLPs and therefore include paths through them.)

    Args:
        llava: The model.
        inputs: The base run, which is changed.
        other: The run that the senders' outputs are taken from.
        senders: The sending heads; each makes one cell.
        receivers: Changed together; each is in a later layer than every sender.
        receiver_input: The input of the receivers that changes: queries, keys or values.
        tokens: Positions of the receivers.
        sender_tokens: Positions of the senders.
        examples: The examples of the batch; only needed for the group ``object``.

    Raises:
        UserError: If the model lacks a head, a receiver is not later than a sender, or positions of the runs differ.

    Source: Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593; Goldowsky-Dill et al. 2023, "Localizing
        Model Behavior with Path Patching", arXiv 2304.05969.
    """
    _check(llava, senders, receivers, receiver_input)
    check_positions(inputs, other)
    masks = Masks(llava, inputs, examples)
    sender_mask, receiver_mask = masks.at("language_model", sender_tokens), masks.at("language_model", tokens)
    sent = {Site("language_model", sender.layer, "z") for sender in senders}
    by_layer: dict[int, list[int]] = {}
    for receiver in receivers:
        by_layer.setdefault(receiver.layer, []).append(receiver.head)
    streams = {layer: Site("language_model", layer, "resid_pre") for layer in by_layer}
    theirs = _values(llava, other, sent)
    ours = _values(llava, inputs, sent | set(streams.values()))
    cells = []
    for sender in senders:
        site = Site("language_model", sender.layer, "z")
        change = (theirs[site] - ours[site])[:, :, sender.head] * sender_mask[..., None]
        contribution = _through_output(llava, site, sender.head, change)
        edits = []
        for layer, heads in by_layer.items():
            received = _receive(llava, inputs, layer, receiver_input, ours[streams[layer]] + contribution)
            at = Site("language_model", layer, receiver_input)
            edits.append(Write(at, receiver_mask, received, tuple(sorted(set(heads)))))
        cells.append(Cell(tuple(edits)))
    return cells


def _values(llava: Llava, inputs: Inputs, sites: set[Site]) -> dict[Site, Tensor]:
    with torch.inference_mode(), fast_bfloat16(), recorded(llava, sites) as values:
        llava.model(**inputs.model_kwargs(), logits_to_keep=1, use_cache=False)
    return {site: value.clone() for site, value in values.items()}


def _through_output(
    llava: Llava, site: Site, head: int, z: Float[Tensor, "example pos d_head"]
) -> Float[Tensor, "example pos d_model"]:
    """The contribution of one head's z to the residual stream."""
    output = llava.module_at(site)
    assert isinstance(output, nn.Linear)
    width = z.shape[-1]
    with torch.inference_mode(), fast_bfloat16():
        return torch.nn.functional.linear(z, output.weight[:, head * width : (head + 1) * width])


def _receive(
    llava: Llava, inputs: Inputs, layer: int, receiver_input: ReceiverInput, resid: Float[Tensor, "example pos d_model"]
) -> Float[Tensor, "example pos head d_head"]:
    """The q, k or v that a block computes from a residual stream."""
    site = Site("language_model", layer, receiver_input)
    with torch.inference_mode(), fast_bfloat16(), recorded(llava, [site]) as values:
        rotary = llava.rotary(resid, inputs.position_ids)
        llava.blocks[layer](resid, attention_mask=None, position_embeddings=rotary)
    return values[site].clone()


def _check(llava: Llava, senders: Sequence[Head], receivers: Sequence[Head], receiver_input: ReceiverInput) -> None:
    if receiver_input not in ("q", "k", "v"):
        raise UserError(f"receiver_input must be q, k or v, got {receiver_input!r}.")
    if not senders or not receivers:
        raise UserError(f"senders and receivers must not be empty, got {len(senders)} and {len(receivers)}.")
    n_receiving = llava.n_heads if receiver_input == "q" else llava.n_kv_heads
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
            f"receivers must be in later layers than senders, got a receiver in layer {earliest} and a sender in "
            f"layer {latest}. A head reads the layers below it."
        )
