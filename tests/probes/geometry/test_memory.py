"""The memory of ``geometry-sweep``: what the kernels keep, what the estimate says, and what the system counts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from probes.activations.open import open_activations
from probes.activations.write import write_activations
from probes.geometry.compare import MeasurePlan
from probes.geometry.search import Searched
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.estimate import memory_of
from probes.geometry.sweep.kernels import Kernels, size_of
from probes.geometry.sweep.run import run_geometry_sweep
from probes.geometry.sweep.sides import open_comparisons
from tasks.errors import UserError

N, LAYERS, WIDTH = 500, 6, 64
PEAK = """
import json, sys
from pathlib import Path
import figures
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.run import run_geometry_sweep
from records.progress import silent


def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


figures.drawn_figures = lambda folder, **_: ()  # fonts and the like are no part of the estimate
folder, out = map(Path, sys.argv[1:])
estimate = run_geometry_sweep(GeometryConfig(folder, dry_run=True))
before = peak()
run_geometry_sweep(GeometryConfig(folder, out=out), on_progress=silent)
print(json.dumps({"before": before, "peak": peak(), "memory": estimate.memory, "added": estimate.added}))
"""


def made_run(folder: Path, n: int = N, layers: int = LAYERS, shard: int = 64) -> Path:
    """Image and caption of ``n`` examples, independent at all layers."""
    draw = np.random.default_rng(0)
    arrays = {
        condition: {
            f"blocks.{layer}.hook_resid_post": {"last": draw.normal(size=(n, WIDTH)).astype(np.float32)}
            for layer in range(layers)
        }
        for condition in ("image", "caption")
    }
    write_activations(folder, arrays, pd.DataFrame({"id": [str(i) for i in range(n)]}), shard=shard)
    return folder


def test_kernels_are_kept_in_half_of_their_memory_and_nothing_of_the_rest() -> None:
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 30, 5)).astype(np.float32))
    a, b = (Searched.of(one, k=4, mutual_k=4).kernel for one in points)
    kernels = Kernels(30, 3, "cpu")
    kernels.put("a 0", a)
    kernels.put("b 1", b)
    kernels.put("a 0", b)  # the first stays
    rows, columns = torch.triu_indices(30, 30, 1)
    for name, one in (("a 0", a), ("b 1", b)):
        found = kernels[name]
        assert torch.equal(found.above, one.off[rows, columns])
        assert torch.equal(found.kernel.sums, one.sums) and torch.equal(found.kernel.diagonal, one.diagonal)
        kept = (found.above, found.kernel.off, found.kernel.diagonal, found.kernel.sums)
        other = {one.off.untyped_storage().data_ptr() for one in (a, b)}
        assert not other & {tensor.untyped_storage().data_ptr() for tensor in kept}
        assert found.above.data_ptr() % 64 == 0
    assert "b 1" in kernels and "b 2" not in kernels
    assert kernels["a 0"].above.untyped_storage().nbytes() == 3 * size_of(30)


def test_only_the_chosen_rows_are_read_from_every_shard(tmp_path: Path) -> None:
    stored = open_activations(made_run(tmp_path / "acts", n=100, layers=1, shard=16))
    side = open_comparisons(GeometryConfig(tmp_path / "acts"))[0].a
    rows = np.array([0, 15, 16, 40, 99])
    wanted = stored.numpy("blocks.0.hook_resid_post", "last")[rows]
    assert np.array_equal(side.read(0, rows), wanted)
    assert side.read(0, rows[:1]).shape == (1, WIDTH)


def test_the_memory_grows_with_the_map_and_with_all_sizes() -> None:
    plan = MeasurePlan()
    base = memory_of(1000, [512, 512], [10, 10], plan, with_map=True)
    assert base > memory_of(1000, [512, 512], [10, 10], plan, with_map=False)
    for n, widths, layers in (
        (1100, [512, 512], [10, 10]),
        (1000, [512, 4096], [10, 10]),
        (1000, [512, 512], [10, 11]),
    ):
        assert memory_of(n, widths, layers, plan, with_map=True) > base


def test_pairs_of_layers_are_measured_one_by_one_where_two_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_run(tmp_path / "acts", n=100, layers=2)
    monkeypatch.setattr("probes.geometry.sweep.estimate.jobs_at_once", lambda device: 2)

    def estimate(free: int) -> Any:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
        return run_geometry_sweep(GeometryConfig(folder, dry_run=True))

    two, one = estimate(2**40), estimate(50_000_000)
    assert (two.at_once, one.at_once) == (2, 1) and one.added < 50_000_000 < two.added


def test_too_little_free_memory_is_one_sentence_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_run(tmp_path / "acts", n=100, layers=1)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**20))
    with pytest.raises(UserError, match=r"limit must be small enough .* got 100 examples, .* Set --limit, or --no-map"):
        run_geometry_sweep(GeometryConfig(folder, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_the_estimate_holds_the_peak_that_the_system_counts(threads: int, tmp_path: Path) -> None:
    folder = made_run(tmp_path / "acts")
    command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    grown = found["peak"] - found["before"]
    # 30 MB for libraries that are loaded on first use; matrices that stay by mistake would be 160 MB here
    assert 0 < grown < 2 * found["added"] + 30e6
    assert 0.8 * found["memory"] < found["peak"] < found["memory"] + 50e6
