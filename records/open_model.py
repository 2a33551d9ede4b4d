"""The model that a command's options name: load it, or check one that is already in memory."""

from dataclasses import replace
from typing import Any

import torch

from models.llava import Llava
from models.loading.load import load
from models.loading.quantised import quantised_as
from records.options import ModelOptions
from tasks.errors import UserError, user_errors
from tasks.files import expanded, real_path

_LOAD_RATE = 1e-8  # seconds for each weight
_CPU_BANDWIDTH, _GPU_BANDWIDTH = 8e9, 1e12  # bytes a second, of reading weights


def open_model(
    options: ModelOptions, *, device: str, seed: int, given: Llava | None = None, weights: bool = True
) -> Llava:
    """Load the model that ``options`` name, on the device of this process.

    ``seed`` is the seed of random weights. ``given`` is the same model with unchanged weights, if in memory; it is
    returned. If ``weights`` is False, the model is on the device meta: it has shapes and a dtype, for an estimate.

    Raises:
        UserError: If the model cannot be loaded, or ``given`` is another model.
    """
    dtype = getattr(torch, options.dtype) if options.dtype else None
    if given is None:
        if not weights:
            dtype, device = dtype or (torch.float32 if device == "cpu" else None), "meta"
        with user_errors(ValueError, OSError, ModuleNotFoundError):
            return load(
                options.name, device=device, dtype=dtype, revision=options.revision, attn=options.attn, seed=seed,
                quantize=options.quantize, device_map=options.device_map,
            )  # fmt: skip
    names = (options.name, f"{options.name}@{seed}", real_path(expanded(options.name)).name)
    wanted = {
        "name": (given.id, given.id if given.id in names else options.name),
        "revision": (given.revision, options.revision or given.revision),
        "device": (given.device, torch.empty(0, device=device).device),
        "dtype": (given.dtype, dtype or given.dtype),
        "attn": (given.attention, options.attn),
        "quantize": (quantised_as(given.model), options.quantize),
    }
    for setting, (found, named) in wanted.items():
        if found != named:
            raise UserError(
                f"llava must be the model that the settings name, got {setting} {str(found)!r} where they have "
                f"{str(named)!r}. Correct ModelOptions, or leave llava out."
            )
    return given


def other_model(options: ModelOptions, name: str, *, device: str, seed: int, weights: bool = True) -> Llava:
    """Load another model with the remaining settings of ``options``; ``weights`` is as in `open_model`."""
    same = name == options.name
    named = replace(options, name=name, revision=options.revision if same else None)
    return open_model(named, device=device, seed=seed, weights=weights)


def describe_model(llava: Llava) -> dict[str, Any]:
    """The entry ``model`` of a manifest."""
    return {"id": llava.id, "revision": llava.revision, "weight_hash": llava.weight_hash}


def load_seconds(llava: Llava) -> float:
    """Estimated time to load a model of this size, from a rate measured on smol and one CPU thread."""
    return 1.0 + _LOAD_RATE * sum(parameter.numel() for parameter in llava.model.parameters())


def token_seconds(llava: Llava, n_rows: int, *, second: float, device: str) -> float:
    """Estimated time to decode one token of each row of a batch: at least the time to read all weights once.

    ``second`` is the time of one multiply-add of a product, and ``device`` where the model will run.
    """
    head = llava.config.text_config.vocab_size * llava.d_model
    weights = sum(parameter.numel() for parameter in llava.blocks.parameters()) + head
    bandwidth = _CPU_BANDWIDTH if torch.device(device).type == "cpu" else _GPU_BANDWIDTH
    return float(max(n_rows * second * weights, weights * llava.dtype.itemsize / bandwidth))
