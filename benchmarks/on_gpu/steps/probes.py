"""The batched logistic solver at the size of LLaVA-1.5-7B, against scikit-learn on the same machine's CPU."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.workplace import Workplace, synchronise
from benchmarks.probes import CLASSES, FOLDS, SIZES, STRENGTHS, make_site, solve_site, time_scikit_learn

_TOL = 3e-4
_ROUNDS = 120  # iterations for each penalty, assumed; the record holds the number that was taken


def plan(place: Workplace, budget: float) -> Work | str:
    """As many of the 33 sites as fit in half of the limit; the other half is scikit-learn's."""
    sites, n, d = SIZES["tiny" if place.small else "llava-7b"]
    columns = sum(CLASSES) * FOLDS
    site = 4.0 * n * d * columns * _ROUNDS * len(STRENGTHS) + 30.0 * d**3
    each = place.speed.seconds(site, dtype="float32")
    fixed = 5.0
    theirs = 3.0 if place.small else budget / 2
    chosen = max(1, min(sites, int((budget - theirs - fixed) / each)))
    settings = {"sites": chosen, "of": sites, "examples": n, "d_model": d, "scikit_learn_seconds": theirs}
    return Work(
        lambda: run(place, chosen, theirs), settings, flops=site * chosen, fixed=fixed + theirs, dtype="float32"
    )


def run(place: Workplace, chosen: int, theirs: float) -> Iterator[dict[str, Any]]:
    """Seconds of each site, then of the problems that scikit-learn solved in its time."""
    sites, n, d = SIZES["tiny" if place.small else "llava-7b"]
    seconds: list[float] = []
    result: dict[str, Any] = {"sites": sites, "examples": n, "d_model": d, "classes": CLASSES, "folds": FOLDS}
    x, targets = make_site(0, n, d, place.device)
    basis, fits = solve_site(x[: min(n, 512)], [t[: min(n, 512)] for t in targets], _TOL)  # warm-up
    for number in range(chosen):
        if number:
            x, targets = make_site(number, n, d, place.device)
        synchronise(place.device)
        began = time.perf_counter()
        basis, fits = solve_site(x, targets, _TOL)
        synchronise(place.device)
        seconds.append(time.perf_counter() - began)
        median = sorted(seconds)[len(seconds) // 2]
        result = result | {
            "seconds_per_site": seconds, "seconds_all_sites": median * sites, "peak_memory": place.peak(),
            "converged": all(bool(fit.converged.all()) for fit in fits),
        }  # fmt: skip
        yield result
    scaled = ((x - basis.centre) / basis.scale).cpu().numpy()
    labels = [target.cpu().numpy() for target in targets]
    for timed in time_scikit_learn(scaled, labels, fits, basis, theirs):
        result = result | {"scikit_learn": timed | {"seconds_all_sites_at_least": timed["seconds_per_site"] * sites}}
        result["ratio_at_least"] = result["scikit_learn"]["seconds_all_sites_at_least"] / result["seconds_all_sites"]
        yield result
    assert torch.isfinite(basis.scale).all()


STEP = Step(
    "probes", "batched logistic probes at 33 sites x 10,000 x 4,096, against scikit-learn on the CPU", 0.9, plan,
    needs=("sklearn", "threadpoolctl"),
)  # fmt: skip
