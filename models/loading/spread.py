"""A model whose blocks do not all fit on the device: the others wait in main memory and are copied when they run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.errors import UserError

_SPARE = 0.85  # share of the device's free memory for weights; activations take the rest


def spread(
    model: Any, device: torch.device | str, *, memory: Mapping[str | int, int] | None = None, folder: Path | None = None
) -> Any:
    """The model with its weights on ``device`` and, as far as they do not fit, in main memory; all run on ``device``.

    Args:
        model: On the CPU.
        device: The device that computes.
        memory: Bytes for weights by device (an index of CUDA, ``"cpu"`` or ``"disk"``); None measures what is free.
        folder: Where weights on ``"disk"`` are written.

    Raises:
        UserError: If the model fits nowhere.
    """
    from accelerate import dispatch_model, infer_auto_device_map  # takes a second to import

    main = torch.device(device)
    if main.type != "cuda" and memory is None:
        return model.to(main)
    index: str | int = "cpu" if main.type == "cpu" else (main.index or 0)
    if memory is None:
        free, _ = torch.cuda.mem_get_info(main)
        memory = {index: int(free * _SPARE), "cpu": _main_memory()}
    placed = infer_auto_device_map(model, dict(memory), no_split_module_classes=_blocks(model))
    if "disk" in placed.values() and folder is None:
        raise UserError("device-map must find room for the weights on the GPU and in main memory, got too little.")
    return dispatch_model(model, placed, main_device=index, offload_dir=folder)


def _blocks(model: Any) -> list[str]:
    """The classes that stay on one device: the blocks of both towers, which add to their input."""
    towers = (model.model.language_model.layers, model.model.vision_tower)
    inner = getattr(towers[1], "vision_model", towers[1])
    return sorted({type(block).__name__ for blocks in (towers[0], inner.encoder.layers) for block in blocks})


def _main_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available * _SPARE)
