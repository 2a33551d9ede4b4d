"""What a run of ``geometry-sweep`` takes: the time of its searches, and the memory that the system will count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from probes.geometry.compare import MeasurePlan
from probes.geometry.search import length_for_halves
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.kernels import size_of
from probes.geometry.sweep.layer_jobs import jobs_at_once
from probes.geometry.sweep.sides import ChosenRows, Comparison
from records.processes import matmul_speed
from records.timings import describe_estimate
from tasks.errors import UserError

# Bytes for each pair of points. Kept of each of two sides: distances, cosines and the kernel in float32. At most at one
# time beside them: the inner products of a side in float64 with three matrices made of them.
_KEPT, _MADE = 12, 32
_LIBRARIES = 30_000_000  # bytes that the libraries of matrix products take in each thread, as measured
# Seconds measured on one CPU thread, 2026-11-30. Of a draw or a shuffle: however few the points, and for each pair of
# points. Of the map, for each draw or shuffle, point and neighbour: of a layer, and of a pair of layers.
DRAW, DRAW_POINTS, MAP_LAYER, MAP_PAIR = 5e-3, 2.6e-8, 5.7e-8, 1.5e-9
FIGURES = 4.5  # seconds


@dataclass(frozen=True)
class GeometryEstimate:
    """The size of a run: comparisons, searches, examples, the time, and the memory."""

    n_comparisons: int
    n_searches: int
    n_examples: int
    stages: Mapping[str, float]
    """Seconds by stage, named as in the manifest's ``timings``."""
    memory: int
    """Bytes at the peak, with what the process takes before it measures; on a GPU those of the GPU."""
    added: int
    """Bytes of ``memory`` that the process does not have yet."""
    at_once: int
    """Pairs of layers that are measured together."""

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.n_comparisons} comparisons of {self.n_examples} examples, {self.n_searches} searches: about "
            f"{self.memory / 1e9:.1f} GB of memory, {describe_estimate(self.stages)}"
        )


def estimate_run(
    config: GeometryConfig, plan: MeasurePlan, comparisons: Sequence[Comparison], chosen: Sequence[ChosenRows],
    device: str, world: int = 1,
) -> GeometryEstimate:  # fmt: skip
    """The products of all searches, the draws and shuffles of every pair, the map, and what is in memory together.

    The time is that of this many processes, all equally fast, each with ``jobs_at_once`` pairs side by side.
    """
    searches, measuring, mapping = 0, 0.0, 0.0
    threads = torch.get_num_threads() if device == "cpu" else 1
    product = 1 / matmul_speed(device, torch.float64)  # with all threads
    parted = 1 / min(threads, jobs_at_once(device))  # much of a draw uses one thread
    repeats = plan.draws + plan.shuffles
    needs: dict[int, int] = dict.fromkeys({1, jobs_at_once(device)}, 0)
    for comparison, rows in zip(comparisons, chosen, strict=True):
        n = len(rows.rows)
        widths = [side.read(next(iter(side.sites)), rows.rows[:1]).shape[1] for side in (comparison.a, comparison.b)]
        layers = [len(side.sites) for side in (comparison.a, comparison.b)]
        own = 2 * len(comparison.pairs) * (2 if comparison.random else 1)
        searches += own
        products = 2 * n**2 * max(widths) * product
        # of a pair: both sides, and the cosines of one with the other
        measuring += own / 2 * (3 * products + repeats * (DRAW + DRAW_POINTS * n**2) * parted)
        if config.layer_map:
            mapping += repeats * n * plan.k * (MAP_LAYER * sum(layers) + MAP_PAIR * layers[0] * layers[1])
        for at_once, most in needs.items():
            together = min(at_once, own // 2)
            bytes_of = memory_of(n, widths, layers, plan, with_map=config.layer_map, at_once=together)
            needs[at_once] = max(most, bytes_of)
    at_once = max(needs)
    if needs[at_once] > psutil.virtual_memory().available:
        at_once = 1
    added = needs[at_once]
    n_examples = max(len(rows.rows) for rows in chosen)
    here = psutil.Process().memory_info().rss if device == "cpu" else 0
    stages = {"measuring": measuring / world, "mapping layers": mapping, "figures": FIGURES * len(comparisons)}
    return GeometryEstimate(len(comparisons), searches, n_examples, stages, here + added, added, at_once)


def memory_of(
    n: int, widths: Sequence[int], layers: Sequence[int], plan: MeasurePlan, *, with_map: bool, at_once: int = 1
) -> int:
    """Bytes that a comparison needs at its peak, which is in a search or in the map.

    Args:
        n: Number of points.
        widths: ``d_model`` of both sides.
        layers: Numbers of layers of both sides.
        plan: The numbers of neighbours.
        with_map: Whether all layers are compared with each other.
        at_once: How many pairs of layers are measured together.
    """
    points = 4 * n * sum(widths)
    neighbours = 2 * 12 * n * (length_for_halves(plan.listed) + length_for_halves(plan.mutual_k))
    # the most of a search, and of the cosines of a with b
    searching, crossing = _MADE * n**2 + 8 * n * max(widths), 24 * n * max(widths)
    measuring = at_once * (points + neighbours + 2 * _KEPT * n**2 + max(searching, crossing) + _LIBRARIES)
    if not with_map:
        return measuring
    kernels = sum(layers) * size_of(n)
    lists = 4 * n * sum(layers) * (length_for_halves(plan.k) + length_for_halves(plan.mutual_k))
    mapping = lists + layers[0] * n**2 + 3 * 8 * n * layers[1] * plan.k
    return kernels + max(measuring, mapping)


def check_memory(estimate: GeometryEstimate, device: str) -> None:
    """Raise ``UserError`` if the memory is not free; that of a GPU is not checked."""
    free = psutil.virtual_memory().available
    if device == "cpu" and estimate.added > free:
        raise UserError(
            f"limit must be small enough for the memory, got {estimate.n_examples} examples, which take "
            f"{estimate.added / 1e9:.1f} GB of {free / 1e9:.1f} GB. Set --limit, or --no-map."
        )
