"""``geometry-sweep`` on made activations: time, processor time and peak memory.

    python -m benchmarks.geometry                                     # 2,500 examples, 33 layers, d_model 4,096
    python -m benchmarks.geometry --examples 200 --layers 3 --width 64  # seconds; checks the script

The activations are two views of one 10-d latent with noise, in float16, with a mean that all examples share. Time and
memory include reading, the table, the map of layers and the figures; they exclude making the activations.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.record import command, heading, machine, options, peak_memory, table, write_record
from probes.activations.write import write_activations
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.run import run_geometry_sweep
from records.progress import silent


def make_run(folder: Path, n: int, layers: int, width: int) -> None:
    """Write image and caption activations, one layer at a time."""
    latent = np.random.default_rng(0).normal(size=(n, 10)).astype(np.float32)
    examples = pd.DataFrame({"id": [str(i) for i in range(n)]})
    for layer in range(layers):
        draw = np.random.default_rng(layer + 1)
        arrays: dict[str, Any] = {}
        for condition in ("image", "caption"):
            mixed = latent @ draw.normal(size=(10, width)).astype(np.float32)
            noise = draw.standard_normal((n, width), dtype=np.float32)
            share = 1 - abs(2 * layer / max(layers - 1, 1) - 1)  # nearest in the middle
            values = 3 + share * mixed + noise
            arrays[condition] = {f"blocks.{layer}.hook_resid_post": {"last": values.astype(np.float16)}}
        write_activations(folder, arrays, examples, {"settings": {"model": "made"}})


def speed(given: argparse.Namespace) -> dict[str, Any]:
    """Wall time, processor time and peak memory of one sweep."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "activations"
        make_run(run, given.examples, given.layers, given.width)
        before = peak_memory()
        config = GeometryConfig(run, out=Path(folder) / "geometry", device=given.device)
        start, processor = time.perf_counter(), time.process_time()
        finished = run_geometry_sweep(config, on_progress=silent)
        assert finished is not None
        found = {
            "examples": given.examples, "layers": given.layers, "width": given.width,
            "seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor,
            "peak_memory_mib": peak_memory(), "peak_memory_before_mib": before,
        }  # fmt: skip
        if given.device.startswith("cuda"):
            found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options(__doc__, repeats=1)
    parser.add_argument("--examples", type=int, default=2500)
    parser.add_argument("--layers", type=int, default=33)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    facts: dict[str, Any] = machine(given.device)
    record: dict[str, Any] = {"command": command(), "machine": facts}
    if "not_run" in facts:
        lines = ["", f"Not yet run: {facts['not_run']}"]
    else:
        with threadpool_limits(given.threads):
            rows = record["rows"] = [speed(given) for _ in range(given.repeats)]
        cells = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
        lines = table([name.replace("_", " ") for name in rows[0]], cells)
    name = f"geometry-{given.examples}x{given.layers}x{given.width}-{given.device.partition(':')[0]}"
    write_record(given.out, name, record, "\n".join([*heading("Geometry of stored activations", facts), *lines]))


if __name__ == "__main__":
    main()
