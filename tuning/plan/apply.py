"""Apply a resolved plan to a model: which parameters require a gradient, and gradient checkpointing.

Only the planned parameters require a gradient, so layers below the lowest one build no graph and keep no activations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.llava import Llava
from tasks.errors import UserError
from tuning.plan.lora import add_lora, is_factor, remove_lora
from tuning.plan.resolve import Resolved, block_parameters, lisa_layers


def apply_plan(llava: Llava, resolved: Resolved, *, seed: int = 0, low_precision: bool = False) -> None:
    """Make exactly the planned parameters require gradients, and add LoRA factors if the plan has them.

    Args:
        llava: Changed in place.
        resolved: The plan, resolved on this model.
        seed: Seed of the initial LoRA factors, or of the blocks that ``lisa`` draws.
        low_precision: Convert frozen parameters to bfloat16. Trained ones stay in float32, which small updates need.

    Example:
        >>> from models.loading.load import load
        >>> from tuning.plan.plan import LayerPlan
        >>> from tuning.plan.resolve import resolve
        >>> llava = load("random:tiny")
        >>> apply_plan(llava, resolve(LayerPlan("1", ()), llava))
        >>> all(".layers.1." in name for name in trained_parameters(llava))
        True
    """
    llava.model.requires_grad_(False)
    if resolved.lora_modules:
        add_lora(llava, resolved, seed=seed)
    wanted = set(resolved.parameters)
    for name, parameter in llava.model.named_parameters():
        if name in wanted or is_factor(name):
            parameter.requires_grad_(True)
    if low_precision:
        for parameter in llava.model.parameters():
            if parameter.is_floating_point():  # quantised weights stay as they are
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
    found = {name for name, parameter in llava.model.named_parameters() if parameter.requires_grad}
    if not wanted <= found:
        raise UserError(
            f"plan must name parameters of the model, got {min(wanted - found)!r}. Resolve it on this model."
        )
    if resolved.plan.method == "lisa":
        draw_blocks(llava, resolved, step=0, seed=seed)


def trained_parameters(llava: Llava) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in llava.model.named_parameters() if parameter.requires_grad}


def planned_parameters(llava: Llava, resolved: Resolved) -> dict[str, nn.Parameter]:
    """All parameters that the plan may change, by name; under ``lisa`` also those in currently frozen blocks."""
    wanted = set(resolved.parameters)
    return {name: parameter for name, parameter in llava.model.named_parameters() if name in wanted or is_factor(name)}


def draw_blocks(llava: Llava, resolved: Resolved, *, step: int, seed: int) -> tuple[int, ...]:
    """Under ``lisa``, unfreeze the blocks of optimizer step ``step`` and freeze the plan's other blocks."""
    active = lisa_layers(resolved, step, seed)
    on = {name for layer in active for name in block_parameters(resolved, layer)}
    off = {name for layer in resolved.layers for name in block_parameters(resolved, layer)} - on
    for name, parameter in llava.model.named_parameters():
        if name in on or name in off:
            parameter.requires_grad_(name in on)
            if name in off:
                parameter.grad = None
    return active


def set_checkpointing(llava: Llava, first_block: int | None, first_vision: int | None = None) -> None:
    """Recompute activations in the backward pass, from block ``first_block`` of the language model on.

    ``first_vision`` is the first such block of the vision tower. If ``first_block`` is None, nothing is recomputed.
    """
    # Reentrant checkpointing, transformers' default, loses the gradients of a block whose input requires none.
    run = partial(checkpoint, use_reentrant=False)
    stacks = ((llava.blocks, first_block), (llava.vision_blocks, first_vision if first_block is not None else None))
    for blocks, first in stacks:
        for index, block in enumerate(blocks):
            layer: Any = block
            layer.gradient_checkpointing = first is not None and index >= first
            layer._gradient_checkpointing_func = run


@contextmanager
def applied(
    llava: Llava, resolved: Resolved, *, seed: int = 0, checkpointing: bool = False, low_precision: bool = False
) -> Iterator[None]:
    """Context manager: apply the plan, with gradient checkpointing if ``checkpointing``.

    ``low_precision`` leaves the frozen parameters rounded to bfloat16. All parameters must have one dtype.
    """
    dtype = llava.dtype
    apply_plan(llava, resolved, seed=seed, low_precision=low_precision)
    set_checkpointing(llava, resolved.first_block if checkpointing else None, resolved.first_vision)
    try:
        yield
    finally:
        set_checkpointing(llava, None)
        remove_lora(llava, merge=False)
        llava.model.zero_grad(set_to_none=True)
        llava.model.requires_grad_(False)
        for parameter in llava.model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
