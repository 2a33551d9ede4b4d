"""A resolved plan on a live model: what requires a gradient, LoRA factors in and out, checkpointing above the prefix.

``apply_plan`` changes the model in place; ``trained_parameters`` then is what the optimizer may hold, and nothing else
requires a gradient, so nothing below the lowest trained parameter makes a graph or keeps an activation.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.llava import Llava
from records.errors import BadInput
from tuning.dropout import BitDropout
from tuning.plan import Resolved, block_parameters, lisa_layers

_ADAPTER = "default"  # PEFT's own name for the one adapter


def apply_plan(llava: Llava, resolved: Resolved, *, seed: int = 0, low_precision: bool = False) -> None:
    """Makes exactly the planned parameters require gradients, with LoRA factors where the plan has them.

    Args:
        llava: Changed in place.
        resolved: The plan, resolved on this model.
        seed: Of the factors' first values; under ``lisa`` of the blocks drawn.
        low_precision: Keep what is frozen in bfloat16, and what trains in float32: the weights that small updates are
            added to need the digits, the others do not.
    """
    llava.model.requires_grad_(False)
    if resolved.lora_modules:
        _add_lora(llava, resolved, seed)
    wanted = set(resolved.parameters)
    for name, parameter in llava.model.named_parameters():
        if name in wanted or f".lora_A.{_ADAPTER}." in name or f".lora_B.{_ADAPTER}." in name:
            parameter.requires_grad_(True)
    if low_precision:
        for parameter in llava.model.parameters():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch.bfloat16)
    found = {name for name, parameter in llava.model.named_parameters() if parameter.requires_grad}
    if not wanted <= found:
        raise BadInput(
            f"plan must name parameters of the model, got {min(wanted - found)!r}. Resolve it on this model."
        )
    if resolved.plan.method == "lisa":
        draw_blocks(llava, resolved, step=0, seed=seed)


def trained_parameters(llava: Llava) -> dict[str, nn.Parameter]:
    """What requires a gradient, by name."""
    return {name: parameter for name, parameter in llava.model.named_parameters() if parameter.requires_grad}


def planned_parameters(llava: Llava, resolved: Resolved) -> dict[str, nn.Parameter]:
    """Everything the plan may ever change, by name: under ``lisa`` also the blocks that rest at the moment."""
    wanted = set(resolved.parameters)
    return {
        name: parameter
        for name, parameter in llava.model.named_parameters()
        if name in wanted or ".lora_A." in name or ".lora_B." in name
    }


def draw_blocks(llava: Llava, resolved: Resolved, *, step: int, seed: int) -> tuple[int, ...]:
    """Under ``lisa``, lets the blocks of optimizer step ``step`` train and the plan's other blocks rest."""
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
    """Recompute blocks in the backward pass instead of keeping their activations, from the first that has a gradient.

    Blocks below make no graph, so there is nothing to recompute. The reentrant kind of checkpoint, transformers'
    default, loses the gradients of a block whose input requires none, which is where a frozen prefix ends.

    Args:
        llava: Changed in place.
        first_block: The lowest block of the language model to checkpoint; None for no checkpointing at all.
        first_vision: The same for the vision tower; None for none of it.
    """
    run = partial(checkpoint, use_reentrant=False)
    stacks = ((llava.blocks, first_block), (llava.vision_blocks, first_vision if first_block is not None else None))
    for blocks, first in stacks:
        for index, block in enumerate(blocks):
            layer: Any = block
            layer.gradient_checkpointing = first is not None and index >= first
            layer._gradient_checkpointing_func = run


@contextmanager
def applied(llava: Llava, resolved: Resolved, *, seed: int = 0, checkpointing: bool = False) -> Iterator[None]:
    """The plan on the model inside the block; outside, no factors, no gradients, nothing requires one, as loaded."""
    apply_plan(llava, resolved, seed=seed)
    first = resolved.first_block if checkpointing else None
    set_checkpointing(llava, first, resolved.first_vision)
    try:
        yield
    finally:
        set_checkpointing(llava, None)
        remove_lora(llava, merge=False)
        llava.model.zero_grad(set_to_none=True)
        llava.model.requires_grad_(False)


def _add_lora(llava: Llava, resolved: Resolved, seed: int) -> None:
    from peft import inject_adapter_in_model  # takes a second to import

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    inject_adapter_in_model(_lora_config(resolved), llava.model)  # type: ignore[arg-type, unused-ignore]
    torch.random.set_rng_state(state)
    for module in llava.model.modules():
        held: Any = getattr(module, "lora_dropout", None)
        if held is not None and isinstance(held[_ADAPTER], nn.Dropout):
            held[_ADAPTER] = BitDropout(held[_ADAPTER].p).train(held[_ADAPTER].training)
    llava.model.requires_grad_(False)


def _lora_config(resolved: Resolved, modules_to_save: Sequence[str] | None = None) -> Any:
    from peft import LoraConfig

    lora = resolved.plan.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # An exact list of full names: layers_to_transform would match layers of the vision tower as well.
        target_modules="|".join(name.replace(".", r"\.") for name in resolved.lora_modules),
        modules_to_save=list(modules_to_save) if modules_to_save else None,
        base_model_name_or_path=None,
    )


def remove_lora(llava: Llava, *, merge: bool) -> None:
    """Takes the factors out of the model, added to the weights or dropped."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(llava.model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            if merge:
                module.merge()
            parent, _, child = name.rpartition(".")
            setattr(llava.model.get_submodule(parent), child, module.get_base_layer())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(llava.model):
            delattr(llava.model, leftover)


def adapter_tensors(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors and the modules trained in full, under the names of PEFT's adapter files."""
    tensors = {}
    for name, tensor in trained.items():
        key = name.replace(f".{_ADAPTER}.", ".") if ".lora_" in name else name
        tensors[f"base_model.model.{key}"] = tensor.detach().to("cpu", torch.float32).contiguous()
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], resolved: Resolved, base: str) -> None:
    """An adapter in PEFT's format, which ``PeftModel.from_pretrained(model, folder)`` opens on the base model.

    Args:
        folder: Must exist.
        tensors: From ``adapter_tensors``.
        resolved: The plan.
        base: The base model's name.
    """
    full = sorted({name.rpartition(".")[0] for name in resolved.parameters})
    config = _lora_config(resolved, full)
    config.base_model_name_or_path = base
    config.inference_mode = True
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = config.to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, default=str) + "\n")
