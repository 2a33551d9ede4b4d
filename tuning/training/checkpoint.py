"""A training run's state on disk, whole or not there: what trains, the optimizer, the schedule and random states.

Only what the plan trains is written, in safetensors by parameter name, the rest in JSON; nothing is pickled. A
checkpoint is written under a temporary name and renamed, so one that has its name is complete.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.errors import UserError
from tuning.training.sharding import placed

_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step in ``folder``; None if there is none."""
    found = [entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)] if folder.is_dir() else []
    return max(found, key=lambda entry: int(entry.name.removeprefix("checkpoint-")), default=None)


def checkpoint_step(path: Path) -> int:
    """The optimizer steps that a checkpoint has behind it.

    Raises:
        UserError: If its name does not say.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"resume must name a folder checkpoint-N, got {str(path)!r}. See the run's folder.")
    return int(match[1])


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole tensors by name, from ``tuning.training.sharding.gathered``."""
    save_file(dict(tensors), path)


def read_weights_into(path: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Puts saved parameters back in place.

    Raises:
        UserError: If the file holds other parameters: it belongs to another plan.
    """
    saved = load_file(path)
    if saved.keys() != parameters.keys():
        odd = min(saved.keys() ^ parameters.keys())
        raise UserError(
            f"checkpoint must hold what the plan trains, got a difference in {odd!r}. Resume with its own plan."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(placed(saved[name], parameter))


def optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Optimizer state: tensors by ``parameter/key``, as they are, sharded or not.

    Args:
        optimizer: Any whose state is tensors and numbers.
        names: ``id(parameter)`` -> name.
    """
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def write_optimizer(folder: Path, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Whole tensors of the state, from ``optimizer_tensors`` through ``gathered``; the groups' numbers beside them."""
    save_file(dict(tensors), folder / "optimizer.safetensors")
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    (folder / "optimizer.json").write_text(json.dumps(groups))


def read_optimizer(folder: Path, optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Puts optimizer state back in place, on the parameters' devices."""
    tensors = load_file(folder / "optimizer.safetensors")
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    optimizer.state.clear()
    for group, saved in zip(optimizer.param_groups, json.loads((folder / "optimizer.json").read_text()), strict=True):
        for parameter in group["params"]:
            state = by_name.get(names[id(parameter)])
            if state is not None:
                # AdamW keeps its step counter on the CPU, its moments beside the parameter
                optimizer.state[parameter] = {
                    key: value if key == "step" else placed(value, parameter) for key, value in state.items()
                }
        group.update({key: tuple(value) if key == "betas" else value for key, value in saved.items()})


def write_random(path: Path) -> None:
    """The random states of Python, NumPy and torch in this process."""
    version, inner, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors = {"cpu": torch.random.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    numbers = {
        "python": json.dumps([version, list(inner), gauss]),
        "numpy": json.dumps([str(kind), int(position), int(has_gauss), float(cached)]),
    }
    save_file(tensors, path, metadata=numbers)


def read_random(path: Path) -> None:
    """Puts them back."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        numbers = file.metadata()
    tensors = load_file(path)
    version, inner, gauss = json.loads(numbers["python"])
    random.setstate((version, tuple(inner), gauss))
    kind, position, has_gauss, cached = json.loads(numbers["numpy"])
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))  # noqa: NPY002
    torch.random.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)


def partial_of(folder: Path) -> Path:
    """The name under which a checkpoint is written until it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def finish(folder: Path, *, keep: int) -> None:
    """Gives a checkpoint its name, and removes the oldest beyond ``keep``."""
    fresh = partial_of(folder)
    for file in fresh.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    whole = sorted(
        (entry for entry in folder.parent.iterdir() if _NAME.fullmatch(entry.name)), key=checkpoint_step, reverse=True
    )
    for old in whole[keep:]:
        shutil.rmtree(old)


def facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    described: dict[str, Any] = json.loads((path / "run.json").read_text())
    return described
