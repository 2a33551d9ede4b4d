"""Checkpoints of a training run: the trained parameters, the optimizer, the schedule and the random states.

Tensors are safetensors files by parameter name, the rest is JSON; nothing is pickled. A checkpoint is written under a
temporary name and renamed, so a folder named ``checkpoint-N`` is complete.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from records.run import check_space
from tasks.errors import UserError, one_line
from tuning.config import RunOptions
from tuning.plan.resolve import Resolved
from tuning.training.sharding import placed

FACTS = "run.json"  # settings, model and data of the run
STATE = "state.json"  # steps, losses, schedule
# Bytes of a checkpoint for each trained number: the weight and AdamW's two moments in float32.
_BYTES_PER_NUMBER = 12
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in ``folder``; None if there is none."""
    found = [entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)] if folder.is_dir() else []
    return max(found, key=lambda entry: int(entry.name.removeprefix("checkpoint-")), default=None)


def checkpoint_step(path: Path) -> int:
    """The optimizer step of a checkpoint.

    Raises:
        UserError: If its name is not ``checkpoint-N``.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"resume must name a folder checkpoint-N, got {str(path)!r}. See the run's folder.")
    return int(match[1])


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write whole tensors by name, from ``tuning.training.sharding.gathered``."""
    save_file(dict(tensors), path)


def read_weights_into(path: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy saved parameters into ``parameters``.

    Raises:
        UserError: If the file holds other parameters, those of another plan.
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
    """The optimizer's state as tensors by ``parameter/key``, sharded as it is.

    Args:
        optimizer: Any whose state is tensors and numbers.
        names: Parameter names by ``id(parameter)``.
    """
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def write_optimizer(folder: Path, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Write the whole state tensors (``optimizer_tensors`` through ``gathered``) and the groups' hyperparameters."""
    save_file(dict(tensors), folder / "optimizer.safetensors")
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    (folder / "optimizer.json").write_text(json.dumps(groups))


def read_optimizer(folder: Path, optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Restore the optimizer's state on the parameters' devices."""
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


def write_random(folder: Path, rank: int) -> None:
    """Write the random states of Python, NumPy and torch in this process."""
    version, inner, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors = {"cpu": torch.random.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    numbers = {
        "python": json.dumps([version, list(inner), gauss]),
        "numpy": json.dumps([str(kind), int(position), int(has_gauss), float(cached)]),
    }
    save_file(tensors, _random_file(folder, rank), metadata=numbers)


def read_random(folder: Path, rank: int) -> None:
    """Restore the random states that ``write_random`` wrote."""
    path = _random_file(folder, rank)
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


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random-{rank}.safetensors"


def partial_of(folder: Path) -> Path:
    """The temporary name under which a checkpoint is written."""
    return folder.with_name(f".{folder.name}.partial")


def finish(folder: Path, *, keep: int) -> None:
    """Rename a written checkpoint to ``folder``, and remove the oldest beyond ``keep``."""
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


def check_resume(path: Path, facts: dict[str, object]) -> None:
    """Check that a checkpoint belongs to a run with these settings.

    Raises:
        UserError: If it is not a checkpoint or belongs to another run; the message lists the differences.
    """
    if not (path / FACTS).is_file() or not (path / STATE).is_file():
        raise UserError(
            f"resume must name a checkpoint folder, got {str(path)!r}. See the run's folder for checkpoint-N."
        )
    check_files(path)
    saved = {"processes": 1, **json.loads((path / FACTS).read_text())}
    for key, value in json.loads(json.dumps(facts)).items():
        if saved.get(key) != value:
            name, before, after = _first_difference(key, saved.get(key), value)
            raise UserError(
                f"resume must continue the same run, got another {name}: it was {before!r}, is {after!r}. "
                "Start anew in another folder, or give the run's own settings."
            )


def _first_difference(key: str, before: object, after: object) -> tuple[str, object, object]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            if before.get(name) != after.get(name):
                return _first_difference(f"{key}.{name}", before.get(name), after.get(name))
    return key, before, after


def check_disk(folder: Path, resolved: Resolved, options: RunOptions, *, model_bytes: int = 0) -> None:
    """Check that the disk has room for the checkpoints of a run, less those that exist, and for its model.

    Args:
        folder: The run directory.
        resolved: The plan.
        options: How many checkpoints are kept.
        model_bytes: Size of what is written after training.

    Raises:
        UserError: If it has not.
    """
    existing = sum(file.stat().st_size for file in folder.glob("checkpoint-*/*") if file.is_file())
    one = resolved.trained * _BYTES_PER_NUMBER if options.save_every else 0
    # The new one is written before the old one is removed.
    needed = max(one, one * (options.keep + 1) - existing) + model_bytes
    if not needed:
        return
    many = f"{options.keep + 1} checkpoints" if one else ""
    what = " and ".join(part for part in (many, "the model" if model_bytes else "") if part)
    check_space(needed, folder, what=what, advice=f"Make room{', or use --save-every 0' if one else ''}.")


def is_finished(path: Path) -> bool:
    """Whether a checkpoint is that of a run's last step."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return bool(state["step"] >= state["steps"] > 0)


def check_files(path: Path) -> None:
    """Check that every file of a checkpoint is whole, before any is read.

    Raises:
        UserError: If one is missing, empty or cut; the message names it.
    """
    names = {FACTS, STATE, "weights.safetensors", "optimizer.json", "optimizer.safetensors"}
    for name in sorted(names | {file.name for file in path.glob("*.safetensors")}):
        try:
            if name.endswith(".json"):
                json.loads((path / name).read_text(encoding="utf-8"))
            else:
                with safe_open(path / name, framework="pt") as file:
                    file.keys()
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise UserError(
                f"checkpoint must be whole, got {name} missing or damaged in {path.name} ({one_line(error)[:100]}). "
                f"Remove {path.name} to resume from an earlier one."
            ) from error
