"""Save a tuned model so that it opens in plain transformers."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.llava import Llava
from models.loading.load import hide_progress_bars
from models.loading.processors import with_padding
from models.pixels import Preprocess
from records.manifest import commit
from tasks.checksums import move_recorded
from tasks.files import expanded, is_folder, real_path
from tuning.plan.apply import apply_plan
from tuning.plan.lora import remove_lora, write_adapter
from tuning.plan.resolve import Resolved


def save_model(
    llava: Llava,
    resolved: Resolved,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    merge: bool = False,
    reload: Callable[[], Llava] | None = None,
    preprocess: Preprocess = "pad",
    base: str | None = None,
) -> None:
    """Write weights, config and processor to ``folder``; untrained weights are bitwise those that were loaded.

    LoRA without ``merge`` is saved as an adapter in PEFT's format, everything else as a full float32 checkpoint, which
    holds 16-bit weights exactly. ``merge`` merges the factors into ``llava`` in place. ``tensors`` holds the trained
    tensors (``PlanTrainer.full_tensors``). ``reload`` loads the model as before training; it is needed if frozen
    weights are rounded to bfloat16 or sharded. Files get their final names once all are written. The saved processor
    prepares pictures as ``preprocess`` did in training. ``base`` is the name of the base model in an adapter's config,
    the model's id if None; a folder is written as an absolute path.
    """
    fresh = folder / ".model.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        adapter = resolved.plan.method == "lora" and not merge
        if adapter:
            write_adapter(fresh, tensors, resolved, _base_name(base or llava.id), llava.revision)
        else:
            whole = llava
            if reload is not None:
                whole = reload()
                apply_plan(whole, resolved)  # adds the LoRA factors that are merged below
            with torch.no_grad():
                for name, parameter in whole.model.named_parameters():
                    if name in tensors:
                        parameter.copy_(tensors[name])
            remove_lora(whole, merge=True)
            with hide_progress_bars():
                whole.model.save_pretrained(fresh)
        processor = with_padding(llava.processor) if preprocess == "pad" else llava.processor
        processor.save_pretrained(fresh)
        for entry in sorted(fresh.iterdir()):
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            if entry.is_dir():
                entry.replace(target)
            else:
                move_recorded(entry, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _base_name(name: str) -> str:
    path = expanded(name)
    return str(real_path(path)) if is_folder(path) else name


def bytes_of_model(resolved: Resolved, *, merge: bool = False) -> int:
    """Bytes that ``save_model`` writes: the adapter, or the full float32 model."""
    adapter = resolved.plan.method == "lora" and not merge
    return (resolved.trained if adapter else resolved.total) * 4


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON data atomically, with its checksum."""
    commit(path, (json.dumps(dict(data), indent=1) + "\n").encode())
