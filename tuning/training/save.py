"""What a tuning run leaves: a folder that opens in plain transformers, with plan and cost beside the weights."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.llava import Llava
from records.manifest import write_atomically
from tuning.plan.apply import apply_plan
from tuning.plan.lora import adapter_tensors, remove_lora, write_adapter
from tuning.plan.resolve import Resolved


def save_model(
    llava: Llava,
    resolved: Resolved,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    merge: bool = False,
    reload: Callable[[], Llava] | None = None,
) -> None:
    """Writes weights, config and processor; what the plan did not train is bitwise what was loaded.

    LoRA without ``merge`` becomes an adapter in PEFT's format; everything else a whole checkpoint in float32, which
    holds 16-bit weights exactly. Files appear in ``folder`` under their own names once all are written.

    Args:
        llava: After training; with ``merge`` its factors are added to the weights and taken out.
        resolved: The plan.
        tensors: The trained tensors by name, as ``PlanTrainer.full_tensors`` gathers them.
        folder: The run directory.
        merge: Whether LoRA factors are merged.
        reload: Gives the model as it was before training, if its frozen weights were rounded (bf16) or are spread over
            processes, so that they are read again.
    """
    fresh = folder / ".model.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    adapter = resolved.plan.method == "lora" and not merge
    if adapter:
        write_adapter(fresh, adapter_tensors(tensors), resolved, llava.id)
    else:
        whole = _whole(llava, resolved, tensors, reload=reload)
        whole.model.save_pretrained(fresh)
    llava.processor.save_pretrained(fresh)
    for entry in sorted(fresh.iterdir()):
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    fresh.rmdir()


def bytes_of_model(resolved: Resolved, *, merge: bool = False) -> int:
    """What ``save_model`` writes: factors and the parts trained beside them, or the whole model in float32."""
    adapter = resolved.plan.method == "lora" and not merge
    return (resolved.trained if adapter else resolved.total) * 4


def _whole(
    llava: Llava, resolved: Resolved, tensors: Mapping[str, Tensor], *, reload: Callable[[], Llava] | None
) -> Llava:
    """The model with its trained tensors and without factors."""
    whole = llava
    if reload is not None:
        whole = reload()
        apply_plan(whole, resolved)  # factors to merge, if the plan has them
    with torch.no_grad():
        for name, parameter in whole.model.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
    remove_lora(whole, merge=True)
    return whole


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Plain data, whole or not there."""
    write_atomically(path, (json.dumps(dict(data), indent=1) + "\n").encode())
