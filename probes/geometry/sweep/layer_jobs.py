"""The measures of one pair of layers as a file: what a killed run has written is not computed again.

    layers/<comparison>-<a>-<b>.safetensors            # and random-... for the randomly initialised model

A file holds the values, the draws, the shuffles and the neighbour lists; its name appears when it is complete.
"""

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from probes.geometry.compare import Labels, Measured, MeasurePlan, measure
from probes.geometry.search import Searched, length_for_halves
from probes.geometry.similarity import Kernel
from probes.geometry.sweep.kernels import Kernels
from probes.geometry.sweep.sides import LayerPair, Rows, Side
from records.manifest import commit
from records.run import writing
from tasks.checksums import is_whole

Array = npt.NDArray[np.float64]
METRICS = ("near", "aligned")
_KINDS = ("values", "errors", "draws", "shuffles", "lists")


class LayerJob(NamedTuple):
    """A pair of layers of two sides."""

    a: Side
    b: Side
    pair: LayerPair
    path: Path


class Done(NamedTuple):
    """What a file holds."""

    measured: Measured
    lists: dict[str, Int32[Tensor, "point k"]]
    """Neighbours by side (``a``, ``b``) and metric (``near``, ``aligned``), such as ``a near``."""


class MeasuredJob(NamedTuple):
    """A pair of layers that is measured and not yet written."""

    job: LayerJob
    tensors: dict[str, Tensor]
    """The contents of its file."""
    kernels: tuple[Kernel, Kernel]
    """Of both layers."""


def jobs_at_once(device: str) -> int:
    """How many jobs are measured together: two on a CPU with several threads, because parts of a job use only one."""
    return 2 if device == "cpu" and torch.get_num_threads() > 1 else 1


def measure_jobs(
    jobs: Sequence[LayerJob], rows: Rows, plan: MeasurePlan, labels: Labels, device: str, at_once: int
) -> Generator[MeasuredJob]:
    """Measure all jobs, in their order, ``at_once`` at a time; close the generator if it is left early.

    Threads cannot be stopped: an error or Ctrl-C is raised when the jobs that have begun are measured.
    """
    threads = torch.get_num_threads()
    at_once = max(1, min(at_once, len(jobs)))
    share = max(1, threads // at_once)
    left = iter(jobs)
    try:
        with ThreadPoolExecutor(at_once, "measure", torch.set_num_threads, (share,)) as pool:
            begun = deque(pool.submit(_measure_job, job, rows, plan, labels, device) for job in islice(left, at_once))
            while begun:
                yield begun.popleft().result()
                begun.extend(pool.submit(_measure_job, job, rows, plan, labels, device) for job in islice(left, 1))
    finally:
        torch.set_num_threads(threads)


def _measure_job(job: LayerJob, rows: Rows, plan: MeasurePlan, labels: Labels, device: str) -> MeasuredJob:
    a, b = (searched(side, layer, rows, plan, device) for side, layer in zip((job.a, job.b), job.pair, strict=True))
    found = measure(a, b, plan, labels)
    tensors = {
        "sizes": torch.tensor([found.n, found.n_joint, plan.half_k, plan.half_label_k]),
        **{f"values {name}": torch.tensor(value, dtype=torch.float64) for name, value in found.values.items()},
        **{f"errors {name}": torch.tensor(value, dtype=torch.float64) for name, value in found.errors.items()},
        **{f"draws {name}": torch.from_numpy(draws) for name, draws in found.draws.items()},
        **{f"shuffles {name}": torch.from_numpy(values) for name, values in found.shuffles.items()},
        **{
            f"lists {side} {metric}": listed(one, plan, metric)
            for side, one in (("a", a), ("b", b))
            for metric in METRICS
        },
    }
    return MeasuredJob(job, tensors, (a.kernel, b.kernel))


def write_job(measured: MeasuredJob, kernels: Kernels | None) -> None:
    """Write the file; keep the kernels of both layers in ``kernels`` for the map, if given."""
    path, pair = measured.job.path, measured.job.pair
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
        commit(path, save(measured.tensors))
    if kernels is not None:
        for key, one in zip((f"a {pair.a}", f"b {pair.b}"), measured.kernels, strict=True):
            kernels.put(key, one)


def listed(one: Searched, plan: MeasurePlan, metric: str) -> Int32[Tensor, "point k"]:
    """The neighbours that the map needs, on the CPU: enough for halves of the points."""
    lists, k = (one.near, plan.k) if metric == "near" else (one.aligned, plan.mutual_k)
    return lists.indices[:, : length_for_halves(k)].to(torch.int32).contiguous().cpu()


def searched(side: Side, layer: int, rows: Rows, plan: MeasurePlan, device: str) -> Searched:
    """The search of one side at a layer."""
    points = torch.from_numpy(side.read(layer, rows)).to(device)
    return Searched.of(points, k=plan.listed, mutual_k=plan.mutual_k)


def read_job(path: Path, n: int, plan: MeasurePlan) -> Done | None:
    """The file's contents; None if it is missing or damaged, or was measured on other points or halves."""
    if not is_whole(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError):
        return None
    sizes = found.pop("sizes", torch.zeros(2)).tolist()
    if [sizes[0], *sizes[2:]] != [n, plan.half_k, plan.half_label_k]:
        return None
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, value in found.items():
        kind, _, rest = name.partition(" ")
        parts[kind][rest] = value
    numbers = {kind: {name: float(value) for name, value in parts[kind].items()} for kind in ("values", "errors")}
    arrays = {kind: {name: np.asarray(value) for name, value in parts[kind].items()} for kind in ("draws", "shuffles")}
    measured = Measured(
        int(sizes[0]), int(sizes[1]), numbers["values"], arrays["draws"], arrays["shuffles"], numbers["errors"]
    )
    return Done(measured, {name: value.clone() for name, value in parts["lists"].items()})
