"""A patch map of a full-size model against whole forwards: ``python -m benchmarks.interventions_large``.

One pair; the whole image is patched into ``resid_pre`` of every layer with engine ``incremental``, base runs included.
The record says how many full forwards that takes, and how much memory.
"""

import statistics
import time
from functools import partial
from typing import Any

import torch

from benchmarks.interventions import job, readout, run_ours
from benchmarks.record import DTYPES, heading, machine, options, peak_memory, table, take_turns, write_record
from interventions.engines.base_runs import plain_logits
from interventions.plan.plan import InterventionPlan
from models.loading.load import load

TARGET = 6.0  # most full forwards that the map should take


def measure(name: str, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Seconds of a forward and of the map, timed in turn, and the peak memory of the process."""
    started = time.perf_counter()
    llava = load(name, device=device, dtype=dtype)
    loading = time.perf_counter() - started
    work = job(llava, "whole image", InterventionPlan("patch", sites=("resid_pre",), tokens=("image",)))
    forward = partial(plain_logits, llava, work.inputs, readout(work.inputs))
    whole_map = partial(run_ours, llava, work, "incremental")
    with torch.inference_mode():
        unchanged = forward()[:, 0]  # warm-up
        moved = [float((logits - unchanged).abs().max()) for logits in whole_map()]
        times = take_turns({"one full forward": forward, "map": whole_map}, repeats)
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    on_gpu = device.startswith("cuda")
    return {
        "machine": machine(llava, batch=1),
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


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options("A whole-image patch map of a full-size model against its forwards.", repeats=5)
    parser.add_argument("--model", default="random:llava-1.5-7b")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    given = parser.parse_args()
    record = measure(given.model, given.device, getattr(torch, given.dtype), given.repeats)
    facts = record.pop("machine")
    note = (
        "One pair, every layer one cell, base runs (clean and corrupt) included in the map. `forwards` is the median "
        "of the map over the median of a full forward; both took turns in one process."
    )
    lines = heading(f"A whole-image patch map of {facts['model']}", facts)
    lines += [*table(("", ""), ((key.replace("_", " "), value) for key, value in record.items())), "", note]
    name = f"interventions-map-{given.model}-{given.device}"
    write_record(given.out, name, {"machine": facts, **record}, "\n".join(lines))


if __name__ == "__main__":
    main()
