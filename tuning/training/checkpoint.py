"""Checkpoints of a training run: trained parameters, optimizer, schedule and random states.

Tensors are safetensors files by parameter name, other data are JSON; nothing is pickled. A checkpoint is renamed to
``checkpoint-N`` once it is complete, and carries the checksums of its files.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from records.run import check_space
from tasks.checksums import check_whole, missing_files, read_whole_json, record_files
from tasks.errors import UserError, one_line
from tasks.files import is_folder
from tasks.readers.parse import parse_json
from tuning.config import RunOptions
from tuning.plan.resolve import Resolved
from tuning.training.sharding import placed

FACTS = "run.json"  # settings, model and data of the run
LAST = Path("last")  # names the latest checkpoint
STATE = "state.json"  # steps, losses, schedule
# Bytes of a checkpoint for each trained number: the weight and AdamW's two moments in float32.
_BYTES_PER_NUMBER = 12
_LOSS = "loss_sum"
_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, by step."""
    found = [entry for entry in folder.iterdir() if _NAME.fullmatch(entry.name)] if folder.is_dir() else []
    return sorted(found, key=checkpoint_step)


@contextmanager
def advise_when_interrupted(folder: Path) -> Iterator[None]:
    """Context manager: after Ctrl-C, say from which step the same command goes on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        last = last_checkpoint(folder)
        raise KeyboardInterrupt(
            f"Start the same command again to go on after step {checkpoint_step(last)}, the last checkpoint."
            if last is not None
            else "There is no checkpoint yet: the same command starts at the first step. Set --save-every to keep some."
        ) from interrupt


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest step in ``folder``; None if there is none."""
    return next(reversed(checkpoints(folder)), None)


def named_checkpoint(given: Path | None, folder: Path) -> Path | None:
    """The checkpoint that ``--resume`` names; ``last`` is the latest one in ``folder``.

    Raises:
        UserError: If there is no such folder.
    """
    found = last_checkpoint(folder) if given == LAST and not LAST.is_dir() else given
    if given is not None and (found is None or not is_folder(found)):
        raise UserError(
            f"resume must name an existing checkpoint, got {str(given)!r}. Leave it out to use the last whole one, if "
            "there is one."
        )
    return found


def last_whole_checkpoint(folder: Path, on_note: Callable[[str], None]) -> Path | None:
    """The latest checkpoint whose files are as they were written; None if there is none.

    ``on_note`` is called for each later one, which is damaged; training from an earlier one makes it anew.
    """
    for path in reversed(checkpoints(folder)):
        try:
            check_files(path)
        except UserError:
            on_note(f"{path.name} is damaged: training goes on from the one before, or from the start")
        else:
            return path
    return None


def checkpoint_step(path: Path) -> int:
    """The optimizer step in the name of a checkpoint."""
    return int(path.name.removeprefix("checkpoint-"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Re-raise what the files of a checkpoint of other contents cause as ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"checkpoint must hold what this command writes, got {one_line(error)[:100]} in {path.name}. "
            f"Remove {path.name} to resume from an earlier one."
        ) from error


def write_weights(
    folder: Path, weights: Mapping[str, Tensor], state: Mapping[str, object], facts: Mapping[str, object]
) -> None:
    """Write the parameters, the state that ``read_state`` reads, and the facts that ``check_resume`` compares."""
    save_file(dict(weights), folder / "weights.safetensors")
    for name, data in ((STATE, state), (FACTS, facts)):
        (folder / name).write_text(json.dumps(data), encoding="utf-8")


def read_weights_into(path: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Copy saved parameters into ``parameters``; raise ``UserError`` if their names differ."""
    saved = load_file(path)
    if saved.keys() != parameters.keys():
        odd = min(saved.keys() ^ parameters.keys())
        raise UserError(
            f"checkpoint must have exactly the plan's parameters, but only one has {odd!r}. Resume with the same plan."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(placed(saved[name], parameter))


def optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as tensors by ``parameter/key``; ``names`` holds parameter names by ``id(parameter)``."""
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def write_optimizer(folder: Path, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Write the gathered ``optimizer_tensors`` and the groups' hyperparameters."""
    save_file(dict(tensors), folder / "optimizer.safetensors")
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    (folder / "optimizer.json").write_text(json.dumps(groups), encoding="utf-8")


def read_optimizer(folder: Path, optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Restore the optimizer's state on the parameters' devices."""
    tensors = load_file(folder / "optimizer.safetensors")
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    optimizer.state.clear()
    for group, saved in zip(
        optimizer.param_groups, json.loads((folder / "optimizer.json").read_text(encoding="utf-8")), strict=True
    ):
        for parameter in group["params"]:
            state = by_name.get(names[id(parameter)])
            if state is not None:
                # AdamW keeps its step counter on the CPU, its moments beside the parameter
                optimizer.state[parameter] = {
                    key: value if key == "step" else placed(value, parameter) for key, value in state.items()
                }
        group.update({key: tuple(value) if key == "betas" else value for key, value in saved.items()})


def write_random(folder: Path, rank: int, loss_sum: Tensor) -> None:
    """Write the random states of Python, NumPy and torch in this process, and its loss since the last logged step."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    tensors = {"cpu": torch.get_rng_state(), _LOSS: loss_sum.detach().cpu()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.stack(torch.cuda.get_rng_state_all())
    states = {"python": json.dumps(random.getstate()), "numpy": json.dumps(numpy_state, default=np.ndarray.tolist)}
    save_file(tensors, _random_file(folder, rank), metadata=states)


def read_random(folder: Path, rank: int) -> None:
    """Restore the random states that ``write_random`` wrote."""
    path = _random_file(folder, rank)
    with safe_open(path, framework="pt") as file:
        states = file.metadata()
    tensors = load_file(path)
    version, inner, gauss = json.loads(states["python"])
    random.setstate((version, tuple(inner), gauss))
    np.random.set_state(json.loads(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(tensors["cpu"])
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state_all(list(tensors["cuda"])[: torch.cuda.device_count()])


def read_loss_sum(folder: Path, rank: int) -> Tensor:
    """The sum of this process's losses since the last logged step; 0 in checkpoints of earlier versions."""
    return load_file(_random_file(folder, rank)).get(_LOSS, torch.zeros(()))


def _random_file(folder: Path, rank: int) -> Path:
    return folder / f"random-{rank}.safetensors"


def partial_of(folder: Path) -> Path:
    """The temporary name under which a checkpoint is written."""
    return folder.with_name(f".{folder.name}.partial")


def finish(folder: Path, *, keep: int) -> None:
    """Rename a written checkpoint to ``folder``, and remove the oldest beyond ``keep``."""
    fresh = partial_of(folder)
    record_files(fresh)
    for file in fresh.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    for old in checkpoints(folder.parent)[:-keep]:
        shutil.rmtree(old)


def check_resume(path: Path, facts: Mapping[str, object]) -> None:
    """Raise ``UserError`` unless ``path`` is a checkpoint of a run with these facts; it names the first difference."""
    if not (path / FACTS).is_file() or not (path / STATE).is_file():
        raise UserError(
            f"resume must name a checkpoint folder, got {str(path)!r}. See the run's folder for checkpoint-N."
        )
    check_files(path)
    saved = {"processes": 1, **parse_json((path / FACTS).read_bytes())}
    for key, value in json.loads(json.dumps(facts)).items():
        if saved.get(key) != value:
            name, before, after = _first_difference(key, saved.get(key), value)
            raise UserError(
                f"resume must continue the same run, got another {name}: it was {before!r}, is {after!r}. "
                "Choose another folder for a new run, or give the settings of the interrupted run."
            )


def _first_difference(key: str, before: object, after: object) -> tuple[str, object, object]:
    if isinstance(before, dict) and isinstance(after, dict):
        name = next(name for name in {**before, **after} if before.get(name) != after.get(name))
        return _first_difference(f"{key}.{name}", before.get(name), after.get(name))
    return key, before, after


def check_disk(folder: Path, resolved: Resolved, options: RunOptions, *, model_bytes: int = 0) -> None:
    """Raise ``UserError`` if the disk has no room for the checkpoints and ``model_bytes`` of a tuned model."""
    existing = sum(file.stat().st_size for file in folder.glob("checkpoint-*/*") if file.is_file())
    one = resolved.trained * _BYTES_PER_NUMBER if options.save_every else 0
    # The new checkpoint is written before the old one is removed.
    needed = max(one, one * (options.keep + 1) - existing) + model_bytes
    if needed:
        sizes = {f"{options.keep + 1} checkpoints": one, "the model": model_bytes}
        what = " and ".join(name for name, size in sizes.items() if size)
        check_space(needed, folder, what=what, advice=f"Make room{', or use --save-every 0' if one else ''}.")


def is_finished(path: Path) -> bool:
    """True if a checkpoint was written after the last step of its run."""
    state = read_state(path)
    return bool(state["step"] >= state["steps"] > 0)


def read_state(path: Path) -> dict[str, Any]:
    """``step``, ``steps``, ``losses`` and ``schedule`` of a checkpoint.

    Raises:
        UserError: If one is missing or of another type.
    """
    advice = f"Remove {path.name} to resume from an earlier one."
    state = read_whole_json(path / STATE, advice=advice)
    kinds = {"step": int, "steps": int, "losses": dict, "schedule": dict}
    wrong = [name for name, kind in kinds.items() if type(state.get(name)) is not kind]
    losses = state.get("losses")
    if (
        not wrong
        and isinstance(losses, dict)
        and not all(step.isdecimal() and isinstance(loss, float | int) for step, loss in losses.items())
    ):
        wrong = ["losses"]
    if wrong:
        raise UserError(f"{STATE} must hold {', '.join(kinds)}, got another {wrong[0]} in {path.name}. {advice}")
    return state


def check_files(path: Path) -> None:
    """Check that every file of a checkpoint is as it was written, before any is read.

    Raises:
        UserError: If one is missing, cut or changed; the message names it.
    """
    names = {FACTS, STATE, "weights.safetensors", "optimizer.json", "optimizer.safetensors", *missing_files(path)}
    for name in sorted(names | {file.name for file in path.glob("*.safetensors")}):
        try:
            check_whole(path / name, advice="")
            if name.endswith(".json"):
                found = parse_json((path / name).read_bytes())
                if not isinstance(found, list if name == "optimizer.json" else dict):
                    raise ValueError(f"a {type(found).__name__}")
            else:
                with safe_open(path / name, framework="pt") as file:
                    file.keys()
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"checkpoint must be whole, got {name} missing or damaged in {path.name} ({one_line(error)[:100]}). "
                f"Remove {path.name} to resume from an earlier one."
            ) from error
    read_state(path)
