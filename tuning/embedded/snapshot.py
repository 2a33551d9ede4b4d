"""Training state on disk, so that a killed run resumes from its last step: tensors in safetensors, numbers in JSON.

A snapshot is one folder, written under a temporary name and renamed, so a reader never sees half of one.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.errors import UserError


def save_snapshot(
    folder: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], facts: Mapping[str, object]
) -> None:
    """Write trainable parameters, optimizer state and ``facts`` (JSON) to ``folder``, replacing what it held."""
    fresh = folder.with_name(folder.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = {
        f"{name}.{key}": parameter.detach().contiguous().clone()
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    save_file(weights, fresh / "weights.safetensors")
    state = {
        f"{name}/{index}/{key}": value.contiguous().clone()
        for name, optimizer in optimizers.items()
        for index, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }
    save_file(state, fresh / "optimizer.safetensors")
    (fresh / "facts.json").write_text(json.dumps(dict(facts), indent=1))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_snapshot(
    folder: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, object] | None:
    """Put a snapshot back in place and return its facts, or None if there is none."""
    if not folder.exists():  # killed between the two renames: the previous snapshot is whole under its other name
        old = folder.with_name(folder.name + ".old")
        if not old.exists():
            return None
        old.rename(folder)
    weights = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[f"{name}.{key}"])
    flat = load_file(folder / "optimizer.safetensors")
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for path, value in flat.items():
            owner, index, key = path.split("/")
            if owner == name:
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    facts: dict[str, object] = json.loads((folder / "facts.json").read_text())
    return facts


def read_facts(folder: Path) -> dict[str, object]:
    """The facts of a snapshot, without its tensors."""
    facts: dict[str, object] = json.loads((folder / "facts.json").read_text())
    return facts


def check_plan(facts: Mapping[str, object], plan: Mapping[str, object], folder: Path) -> None:
    """Check that a snapshot comes from a run with this plan (seed, steps, rates, what it started from).

    Raises:
        ValueError: If it does not.
    """
    found = facts.get("plan")
    saved: dict[str, object] = found if isinstance(found, dict) else {}
    for name, value in plan.items():
        if name in saved and saved[name] != json.loads(json.dumps(value)):
            raise UserError(
                f"{name} must be {saved[name]}, as in the snapshot in {folder}, got {value}. Use another --work."
            )


def digest(*modules: nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    found = hashlib.sha256()
    for module in modules:
        for key, value in module.state_dict().items():
            found.update(key.encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors under a temporary name and rename, so that a file that exists is complete."""
    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial)
    partial.replace(path)
