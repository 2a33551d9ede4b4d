"""LoRA factors on a plan's linear maps: add, remove and merge them with PEFT, and write adapters in PEFT's format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.llava import Llava
from tuning.plan.resolve import Resolved


def is_factor(name: str) -> bool:
    """True for the name of a LoRA factor."""
    return ".lora_A." in name or ".lora_B." in name


def add_lora(llava: Llava, resolved: Resolved, *, seed: int) -> None:
    """Add LoRA factors to the plan's linear maps in place: A drawn from ``seed``, B zero; none requires a gradient."""
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


def write_adapter(
    folder: Path, trained: Mapping[str, Tensor], resolved: Resolved, base: str, revision: str | None
) -> None:
    """Write an adapter that ``PeftModel.from_pretrained(model, folder)`` opens on the model ``base``, a name or path.

    ``trained`` holds the factors and all fully trained tensors, by name; ``folder`` must exist.
    """
    tensors = {
        # in files, PEFT omits the adapter's name from the names of factors
        f"base_model.model.{name.replace('.default.', '.') if is_factor(name) else name}": tensor.detach()
        .to("cpu", torch.float32)
        .contiguous()
        for name, tensor in trained.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    full = {name.rpartition(".")[0] for name in resolved.parameters}
    # A module is saved with its submodules: the tower's embeddings with the patch embedding.
    outermost = sorted(name for name in full if not any(name.startswith(f"{other}.") for other in full))
    config = _lora_config(resolved, outermost)
    config.base_model_name_or_path, config.revision = base, revision
    config.inference_mode = True
    config.save_pretrained(folder)
