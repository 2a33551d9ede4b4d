"""LoRA on a plan's maps: factors in and out of the model, their training forward, adapters in PEFT's format.

The maps are PEFT's, so what knows PEFT's adapters knows these; how a step is computed is not. The factors' second
product adds onto the frozen map's output (PEFT scales it, then adds it, each another pass over the output), and dropout
draws only what it drops.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.llava import Llava
from tuning.plan.dropout import SparseDropout
from tuning.plan.resolve import Resolved

_ADAPTER = "default"  # PEFT's own name for the one adapter


def is_factor(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA factor."""
    return ".lora_A." in name or ".lora_B." in name


def add_lora(llava: Llava, resolved: Resolved, *, seed: int) -> None:
    """Puts factors on the plan's maps, the first ones drawn from ``seed``, the second ones zero; nothing trains yet.

    Args:
        llava: Changed in place.
        resolved: The plan, of method ``lora``.
        seed: Of the factors' first values.
    """
    from peft import inject_adapter_in_model  # takes a second to import

    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    inject_adapter_in_model(_lora_config(resolved), llava.model)  # type: ignore[arg-type, unused-ignore]
    torch.random.set_rng_state(state)
    for module in llava.model.modules():
        _fuse(module)
    llava.model.requires_grad_(False)


def _fuse(module: Any) -> None:
    """Makes PEFT's plain map on a plain ``nn.Linear`` one that computes the same in fewer passes; leaves all others."""
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear:  # quantised maps among others
        return
    module.__class__ = _fused_class()
    drop = module.lora_dropout[_ADAPTER]
    if isinstance(drop, nn.Dropout):
        module.lora_dropout[_ADAPTER] = SparseDropout(drop.p).train(drop.training)


@cache
def _fused_class() -> Any:
    from peft.tuners.lora import Linear

    class FusedLinear(Linear):  # type: ignore[misc, unused-ignore]
        """PEFT's LoRA map, its scaled second product added onto the frozen map's output as it is computed."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """``batch pos d_out`` from ``batch pos d_in``."""
            first: Any = self.lora_A[_ADAPTER].weight
            last: Any = self.lora_B[_ADAPTER]
            second: Any = last.weight
            one_type = torch.is_autocast_enabled(x.device.type) or (
                x.dtype == self.base_layer.weight.dtype == first.dtype == second.dtype
            )
            plain = not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            hooked = last._forward_pre_hooks or last._forward_hooks  # they run where it is called; sharding is one
            if hooked or not one_type or not plain or self.active_adapters != [_ADAPTER]:
                out: Tensor = super().forward(x, *args, **kwargs)
                return out
            frozen: Tensor = self.base_layer(x)
            narrow: Tensor = self.lora_A[_ADAPTER](self.lora_dropout[_ADAPTER](x))
            d_out, rank = second.shape
            scale: float = self.scaling[_ADAPTER]
            rows = torch.addmm(frozen.reshape(-1, d_out), narrow.reshape(-1, rank), second.T, alpha=scale)
            return rows.view(frozen.shape)

    return FusedLinear


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
    full = {name.rpartition(".")[0] for name in resolved.parameters}
    # A module is saved with all that it holds: the tower's embeddings with the patch embedding inside them.
    outermost = sorted(name for name in full if not any(name.startswith(f"{other}.") for other in full))
    config = _lora_config(resolved, outermost)
    config.base_model_name_or_path = base
    config.inference_mode = True
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = config.to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, default=str) + "\n")
