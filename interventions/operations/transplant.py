"""Weight transplant: put layers of one checkpoint into another, to find the layers whose training a skill needs.

    with transplanted(stage1, smol, layers=range(8), head=False) as mixed:
        ...  # mixed runs with layers 0 to 7 of smol

Parameters are exchanged and not overwritten, so the recipient is restored exactly.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from models.layer_ranges import format_layers
from models.llava import Llava
from models.sites import Site
from tasks.errors import UserError

# Equal shapes do not imply equal computations: these must agree too.
_SAME = (
    "num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps", "rope_parameters", "rope_theta",
    "rope_scaling",
)  # fmt: skip


@contextmanager
def transplanted(
    llava: Llava, donor: Llava, layers: Iterable[int], *, head: bool = False, projector: bool = False
) -> Iterator[Llava]:
    """Give ``llava`` the donor's weights in some layers of the language model until the context ends.

    The context yields the recipient with an id and a weight hash that name the mixture, and restores it at the end,
    also after an exception. Embeddings and vision tower stay. If the head is tied to the embeddings, only the head is
    exchanged. A base that was prepared before with ``llava`` is invalid for the mixture.

    Args:
        llava: The recipient.
        donor: A checkpoint of the same architecture; its weights are moved to the recipient's device and dtype.
        layers: Blocks of the language model; may be empty.
        head: Whether to exchange the final norm and the head too.
        projector: Whether to exchange the projector too.

    Raises:
        UserError: If a layer is out of range, or the architectures differ.

    Source: Palacios 2025, "How LLaVA Learns to See: Localizing Representation Changes in Visual Instruction Tuning",
        thesis, University of Trieste.

    Example:
        >>> from models import load
        >>> before, after = load("random:tiny", seed=0), load("random:tiny", seed=1)
        >>> own = before.blocks[0].mlp.up_proj.weight
        >>> with transplanted(before, after, layers=[0]) as mixed:
        ...     bool((mixed.blocks[0].mlp.up_proj.weight == after.blocks[0].mlp.up_proj.weight).all())
        True
        >>> before.blocks[0].mlp.up_proj.weight is own
        True
    """
    wanted = sorted(set(layers))
    _check(llava, donor, wanted)
    owners: list[Any] = [(llava.blocks[layer], donor.blocks[layer]) for layer in wanted]
    if head:
        final = Site("language_model", None, "final_norm")
        owners.append((llava.module_at(final), donor.module_at(final)))
        owners.append((llava.model.get_output_embeddings(), donor.model.get_output_embeddings()))
    if projector:
        owners.append((llava.projector, donor.projector))
    exchanges = [exchange for mine, theirs in owners for exchange in _parameters(mine, theirs, donor.id)]
    parts = [*([format_layers(wanted)] if wanted else []), *["head"] * head, *["projector"] * projector]
    name = f"{llava.id}+{donor.id}[{';'.join(parts)}]"
    digest = hashlib.sha256(f"{llava.weight_hash}/{donor.weight_hash}/{parts}".encode()).hexdigest()
    try:
        for module, key, _, new in exchanges:
            setattr(module, key, new)
        yield replace(llava, id=name, weight_hash=digest)
    finally:
        for module, key, old, _ in exchanges:
            setattr(module, key, old)


def _parameters(
    mine: nn.Module, theirs: nn.Module, donor: str
) -> list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]:
    """For each parameter: its module, its name there, its present value, and the donor's."""
    ours, given = dict(mine.named_parameters()), dict(theirs.named_parameters())
    shapes = [{name: tuple(value.shape) for name, value in side.items()} for side in (ours, given)]
    if shapes[0] != shapes[1]:
        differing = next(name for name in {**ours, **given} if shapes[0].get(name) != shapes[1].get(name))
        raise UserError(
            f"donor must have weights of the recipient's shapes, got {shapes[1].get(differing)} for "
            f"{shapes[0].get(differing)} at {differing!r} of {donor}. Both must be of one architecture."
        )
    found = []
    for name, old in ours.items():
        path, _, key = name.rpartition(".")
        weight = given[name].detach().to(old.device, old.dtype)
        found.append((mine.get_submodule(path), key, old, nn.Parameter(weight, requires_grad=old.requires_grad)))
    return found


def _check(llava: Llava, donor: Llava, layers: list[int]) -> None:
    wrong = [layer for layer in layers if not 0 <= layer < llava.n_layers]
    if wrong:
        raise UserError(
            f"layer must be in [0, {llava.n_layers}) for {llava.id}, got {wrong[0]}. Layers count from 0; head=True "
            "exchanges the head."
        )
    if donor.n_layers != llava.n_layers:
        raise UserError(
            f"donor must have {llava.n_layers} layers as {llava.id} has, got {donor.n_layers} in {donor.id}. "
            "Both must be of one architecture."
        )
    if (llava.grid, llava.image_token_id) != (donor.grid, donor.image_token_id) or (
        llava.tokenizer.get_vocab() != donor.tokenizer.get_vocab()
    ):
        raise UserError(
            f"donor must have the patch grid and vocabulary of {llava.id}, got different ones in {donor.id}. "
            "Both runs get the recipient's inputs."
        )
    mine, theirs = llava.config.text_config, donor.config.text_config
    for key in _SAME:
        if getattr(mine, key, None) != getattr(theirs, key, None):
            raise UserError(
                f"donor must have the recipient's {key}, got {getattr(theirs, key, None)!r} for "
                f"{getattr(mine, key, None)!r} in {donor.id}. Both must be of one architecture."
            )
