"""LoRA factors on a plan's linear maps: add, remove and merge them with PEFT, and write adapters in PEFT's format."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.llava import Llava
from tuning.plan.resolve import Resolved

_ADAPTER = "default"  # PEFT's own name for the one adapter


def is_factor(name: str) -> bool:
    """True for the name of a LoRA factor."""
    return ".lora_A." in name or ".lora_B." in name


def add_lora(llava: Llava, resolved: Resolved, *, seed: int) -> None:
    """Add factors to the plan's linear maps: A drawn from ``seed``, B zero. No parameter requires a gradient then.

    Args:
        llava: Changed in place.
        resolved: A plan of method ``lora``.
        seed: Of A's initial values.
    """
    from peft import inject_adapter_in_model  # takes a second to import

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    inject_adapter_in_model(_lora_config(resolved), llava.model)  # type: ignore[arg-type, unused-ignore]
    torch.random.set_rng_state(state)
    llava.model.requires_grad_(False)


def _lora_config(resolved: Resolved, modules_to_save: Sequence[str] | None = None) -> Any:
    from peft import LoraConfig

    lora = resolved.plan.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # Full names: layers_to_transform would match layers of the vision tower as well.
        target_modules="|".join(name.replace(".", r"\.") for name in resolved.lora_modules),
        modules_to_save=list(modules_to_save) if modules_to_save else None,
        base_model_name_or_path=None,
    )


def remove_lora(llava: Llava, *, merge: bool) -> None:
    """Remove the factors from the model, merged into the weights or dropped."""
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
    """The factors and the fully trained modules under the names of PEFT's adapter files."""
    tensors = {}
    for name, tensor in trained.items():
        key = name.replace(f".{_ADAPTER}.", ".") if ".lora_" in name else name
        tensors[f"base_model.model.{key}"] = tensor.detach().to("cpu", torch.float32).contiguous()
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], resolved: Resolved, base: str) -> None:
    """Write an adapter that ``PeftModel.from_pretrained(model, folder)`` opens on the base model.

    Args:
        folder: An existing folder.
        tensors: From ``adapter_tensors``.
        resolved: The plan.
        base: Name or path of the base model.
    """
    full = {name.rpartition(".")[0] for name in resolved.parameters}
    # A module is saved with its submodules: the tower's embeddings with the patch embedding.
    outermost = sorted(name for name in full if not any(name.startswith(f"{other}.") for other in full))
    config = _lora_config(resolved, outermost)
    config.base_model_name_or_path = base
    config.inference_mode = True
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = config.to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, default=str) + "\n")
