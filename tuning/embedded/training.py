"""The training loop of the embedded checkpoints, with snapshots from which a killed run continues.

A snapshot is one safetensors file: trained parameters, optimizer state, and facts as JSON in its metadata.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tasks.errors import UserError


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: 4 % warm-up, constant, then linear to 0 over the last 40 % of the steps."""
    return min((step + 1) / (0.04 * steps), 1.0, max(0.0, (steps - step) / (0.4 * steps)))


def train(
    work: Path,
    stage: str,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizer,
    losses: Callable[[int], Iterator[tuple[Tensor, str]]],
    plan: Mapping[str, Any],
    *,
    log_every: int,
    save_every: int,
) -> None:
    """Train in place for ``plan["steps"]`` steps, from the stage's snapshot in ``work`` if there is one.

    ``losses`` starts at a given step and yields the loss of each step and a text for the log; its code after a
    ``yield`` runs after the update. A snapshot contains the parameters of ``modules`` that require a gradient.
    ``optimizer`` has the peak learning rates.

    Raises ``UserError`` if the snapshot has another plan, and ``FloatingPointError`` if a loss is not finite.
    """
    path = snapshot_path(work, stage)
    facts = load_snapshot(path, modules, optimizer) or {"step": 0, "seconds": 0.0}
    saved = facts.get("plan", {})
    for name, value in plan.items():
        if name in saved and saved[name] != json.loads(json.dumps(value)):
            raise UserError(
                f"{name} must be {saved[name]}, as in the snapshot {path}, got {value}. Use another --work."
            )
    began, steps = time.time() - facts["seconds"], plan["steps"]
    peaks = [group["lr"] for group in optimizer.param_groups]
    recent: list[float] = []
    for step, (loss, text) in enumerate(losses(facts["step"]), facts["step"]):
        loss.backward()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"loss must be finite, got {loss.item()} at step {step}. Lower lr and start again."
            )
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        last, now = step == steps - 1, time.time() - began
        if (step + 1) % log_every == 0 or last:
            mean = sum(recent) / len(recent)
            print(f"{stage} {step + 1}/{steps} loss {mean:.3f} {text + ' ' * bool(text)}{now:.0f} s", flush=True)
            recent.clear()
        if (step + 1) % save_every == 0 or last:
            save_snapshot(path, modules, optimizer, {"step": step + 1, "seconds": now, "plan": dict(plan)})


def snapshot_path(work: Path, stage: str) -> Path:
    """The file of a stage's snapshot."""
    return work / f"{stage}.snapshot.safetensors"


def save_snapshot(
    path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, facts: Mapping[str, object]
) -> None:
    """Write trained parameters, optimizer state and ``facts``, replacing the file."""
    tensors = {f"weights/{name}": parameter.detach().contiguous().clone() for name, parameter in _trained(modules)}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value.contiguous().clone() for key, value in entries.items()}
    write_tensors(tensors, path, {"facts": json.dumps(dict(facts))})


def load_snapshot(path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Any] | None:
    """Restore a snapshot and return its facts; None if there is none."""
    if not path.exists():
        return None
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in _trained(modules):
            parameter.copy_(tensors[f"weights/{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_facts(path)


def _trained(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules.items():
        for key, parameter in module.named_parameters():
            if parameter.requires_grad:
                yield f"{name}.{key}", parameter


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a snapshot, without its tensors."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    return facts


def digest(*modules: nn.Module) -> str:
    """SHA-256 of all parameters and buffers; a resumed run must start from the same values."""
    found = hashlib.sha256()
    for module in modules:
        for key, value in module.state_dict().items():
            found.update(key.encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors under a temporary name and rename, so a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(dict(tensors), partial, metadata=metadata)
    partial.replace(path)
