"""Runs of the four commands with several shards, batches, checkpoints and evaluations, and how two of them compare."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from tests.hostile.commands import COST, PATCH, PROBE, TUNE

LINE = {
    PROBE: "--limit 70 --target colour --site resid_post --layers 0,2 --folds 2 --maps 2 --batch-size 16 "
    "--transfer none --no-controls",
    PATCH: "--limit 12 --batch-size 2 --site resid_pre --site mlp_out",
    TUNE: "--data turns.json --images pics --layers last:1 --steps 12 --batch-size 2 --max-length 256 --save-every 2 "
    "--log-every 5 --eval-data questions.json --eval-every 3",
    COST: "--limit 7 --batch-size 2 --rounds 0 --new-tokens 3",
}
TIMES = ("started", "finished", "seconds", "command", "timings")  # of a manifest
UNTIMED = {"cost.json"}  # holds measured times


def arguments(command: str, out: str) -> list[str]:
    return ["--model", "model", *LINE[command].split(), "--out", out]


def contents(run: Path) -> dict[str, Any]:
    """All files of a run but hidden ones; manifests without times, and pictures of figures by name."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(run).parts) or name in UNTIMED:
            continue
        if name == "manifest.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES}
        elif path.name.startswith("random-"):  # beartype's checks, which tests switch on, draw from Python's generator
            with safe_open(path, "pt") as file:
                numpy_state = file.metadata()["numpy"]
            found[name] = {**{k: tensor.tolist() for k, tensor in load_file(path).items()}, "numpy": numpy_state}
        else:
            found[name] = path.suffix if name.startswith("figures/") else path.read_bytes()
    return found
