"""LoRA factors in PEFT's format, merged into the weights of their base model."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.loading.checkpoints import canonical, stored_tensors, weights_beside
from models.loading.config_checks import check_json_files, read_json
from tasks.errors import UserError

_CONFIG, _FACTORS = "adapter_config.json", "adapter_model.safetensors"
_MERGE = "Or merge the factors: layerwise-finetune --merge, or PEFT's merge_and_unload."
# Settings that change what the factors compute -> the value that is supported.
_SUPPORTED = {
    "peft_type": "LORA", "use_dora": False, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {},
    "lora_bias": False, "alora_invocation_tokens": None,
}  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "mica")  # initial factors that PEFT subtracts from the base


class Lora(NamedTuple):
    """A folder of LoRA factors."""

    base: str
    """The name or folder of the base model."""
    alpha: float
    """Divided by the rank, the factor on B @ A."""
    rank_stabilised: bool
    """Divide by the root of the rank instead."""
    file: Path
    revision: str | None = None
    """Branch, tag or commit of the base."""


def read_lora(folder: Path) -> Lora | None:
    """What a folder's ``adapter_config.json`` says; None for a folder without one.

    Raises:
        UserError: If it is another kind of adapter, its factors are missing, or whole weights are beside them.
    """
    if not (folder / _CONFIG).is_file():
        return None
    check_json_files(folder)
    described = read_json(folder / _CONFIG)
    for key, wanted in _SUPPORTED.items():
        found = described.get(key, wanted)
        if found != wanted and found is not None:
            raise UserError(
                f"{key} of an adapter must be {wanted!r}, got {found!r:.60} in {folder.name}. Merge it into its base "
                "model with PEFT's merge_and_unload."
            )
    if weights_beside(folder, "*.safetensors") or weights_beside(folder, "pytorch_model*.bin"):
        raise UserError(
            f"checkpoint folder must hold either whole weights or LoRA factors, got both in {folder.name}. Remove "
            f"{_CONFIG} and {_FACTORS}, or move them to a folder of their own."
        )
    start = described.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().split("_")[0] in _CHANGES_BASE:
        raise UserError(
            f"init_lora_weights of an adapter must leave its base unchanged, got {start!r:.60} in {folder.name}. Merge "
            "it into its base model with PEFT's merge_and_unload."
        )
    base, alpha = described.get("base_model_name_or_path"), described.get("lora_alpha")
    revision = described.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"base_model_name_or_path must name the base of the LoRA factors in {folder.name}, got {base!r:.60}."
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UserError(f"lora_alpha must be a number, got {alpha!r:.60} in {folder.name}. Correct {_CONFIG}.")
    if not (folder / _FACTORS).is_file():
        raise UserError(f"checkpoint folder must hold the LoRA factors {_FACTORS}, got none in {folder.name}.")
    return Lora(
        base, float(alpha), bool(described.get("use_rslora")), folder / _FACTORS,
        revision if isinstance(revision, str) else None,
    )  # fmt: skip


def no_base(lora: Lora, error: UserError) -> UserError:
    """The error for factors whose base cannot be found."""
    return UserError(
        f"base_model_name_or_path must name the base model of the LoRA factors in {lora.file.parent.name}, got "
        f"{lora.base!r:.100}: {str(error)[:150]} Correct it in {_CONFIG}. {_MERGE}"
    )


def merge(weights: dict[str, Tensor], lora: Lora, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights with ``B @ A`` added, and fully trained tensors in place of the base's.

    Tensors that change get ``dtype``, which the model will have: 16 bits of the base would round small changes away.

    Raises:
        UserError: If a factor does not fit the base model.
    """
    own = {canonical(key): key for key in weights}
    found: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in stored_tensors([lora.file]):
        key, _, part = stored.removeprefix("base_model.model.").partition(".lora_")
        name = canonical(f"{key}.weight" if part else key)
        if name not in own or part not in ("", "A.weight", "B.weight"):
            raise _misfit(stored, lora)
        found.setdefault(own[name], {})[part] = tensor
    merged = dict(weights)
    for name, parts in found.items():
        base: Any = weights[name]
        if "" in parts:
            value = parts[""]
        elif parts.keys() != {"A.weight", "B.weight"} or not _fits(parts, base):
            raise _misfit(name, lora)
        else:
            first, second = parts["A.weight"].float(), parts["B.weight"].float()
            rank = len(first)
            scale = lora.alpha / (math.sqrt(rank) if lora.rank_stabilised else rank)
            value = base.float() + (second @ first) * scale
        if value.shape != base.shape:
            raise _misfit(name, lora)
        for key, tensor in weights.items():
            if key == name or tensor is base:  # a tied head
                merged[key] = value.to(dtype)
    return merged


def _fits(parts: dict[str, Tensor], base: Tensor) -> bool:
    first, second = parts["A.weight"], parts["B.weight"]
    matrices = first.ndim == second.ndim == base.ndim == 2 and len(first) > 0
    return matrices and first.shape == (len(first), base.shape[1]) and second.shape == (base.shape[0], len(first))


def _misfit(key: str, lora: Lora) -> UserError:
    return UserError(
        f"LoRA factors must fit their base model {lora.base!r:.100}, got {key!r:.120} in {lora.file.parent.name}. "
        f"Name the right base in {_CONFIG}."
    )
