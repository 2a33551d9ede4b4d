"""A patch map of a full-size model against whole forwards of it: ``python -m benchmarks.interventions_large``.

One pair, the whole image patched into ``resid_pre`` of every layer, under engine ``incremental`` with base runs included:
how many full forwards is that worth, and how much memory does it take? On a GPU, ``--device cuda``.
"""

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.capture import machine, peak_memory
from benchmarks.interventions import RECORDS, job, readout, run_ours, take_turns
from interventions.engines.base_runs import plain_logits
from interventions.plan.plan import InterventionPlan
from models.loading.load import load

TARGET = 6.0  # full forwards that the map may take


def measure(name: str, device: str, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    """Seconds of a forward and of the map, in turn, and the process's peak memory."""
    started = time.perf_counter()
    llava = load(name, device=device, dtype=dtype)
    loading = time.perf_counter() - started
    work = job(llava, "whole image", InterventionPlan("patch", sites=("resid_pre",), tokens=("image",)))
    forward = partial(plain_logits, llava, work.inputs, readout(work.inputs))
    whole_map = partial(run_ours, llava, work, "incremental")
    with torch.inference_mode():
        unchanged = forward()[:, 0]  # warms up
        moved = [float((logits - unchanged).abs().max()) for logits in whole_map()]
        times = take_turns({"one full forward": forward, "map": whole_map}, repeats)
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    on_gpu = device.startswith("cuda")
    return {
        "machine": machine(llava) | {"batch": 1},
        "positions": work.inputs.n_positions,
        "cells": len(work.cells),
        "seconds": times,
        "medians": medians,
        "forwards": medians["map"] / medians["one full forward"],
        "target": TARGET,
        "largest_change_of_a_logit": max(moved),
        "loading_seconds": loading,
        "peak_memory_gb": peak_memory() * 2**20 / 1e9,
        "peak_device_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }


def describe(record: dict[str, object], command: str) -> str:
    """The record as Markdown."""
    facts: Any = record["machine"]
    lines = [f"# A whole-image patch map of {facts['model']}, {datetime.now(UTC):%Y-%m-%d}", "", f"`{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in record.items() if key != "machine"]
    lines += [
        "",
        "One pair, every layer one cell, base runs (clean and corrupt) included in the map. `forwards` is the median "
        "of the map over the median of a full forward; both took turns in one process.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, writes the record, prints it."""
    parser = argparse.ArgumentParser(description="A whole-image patch map of a full-size model against its forwards.")
    parser.add_argument("--model", default="random:llava-1.5-7b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    options = parser.parse_args()
    record = measure(options.model, options.device, getattr(torch, options.dtype), options.repeats)
    text = describe(record, " ".join(["python -m benchmarks.interventions_large", *sys.argv[1:]]))
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.model.replace(":", "-").replace("/", "-")
    stem = options.out / f"interventions-map-{datetime.now(UTC):%Y-%m-%d}-{name}-{options.device}"
    stem.with_name(stem.name + ".json").write_text(json.dumps(record, indent=2) + "\n")  # the name has dots
    stem.with_name(stem.name + ".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
