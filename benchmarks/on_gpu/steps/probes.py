"""The batched logistic solver at the size of LLaVA-1.5-7B, against scikit-learn on the same machine's CPU."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.workplace import Workplace, synchronise
from benchmarks.probes import CLASSES, FOLDS, OUR_TOLS, SIZES, STRENGTHS, Problem, Problems, make_site, solve_site
from probes.linear.solver import Basis, LogisticFit

_SKLEARN_TOL = 1e-4  # the default, at which weak penalties stop well above the gap at which ours stops
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
    problems = make_site(0, n, d, place.device)
    basis, fits = solve_site(problems.first(512), OUR_TOLS[0])  # warm-up
    for number in range(chosen):
        if number:
            problems = make_site(number, n, d, place.device)
        synchronise(place.device)
        began = time.perf_counter()
        basis, fits = solve_site(problems, OUR_TOLS[0])
        synchronise(place.device)
        seconds.append(time.perf_counter() - began)
        median = sorted(seconds)[len(seconds) // 2]
        result = result | {
            "seconds_per_site": seconds, "seconds_all_sites": median * sites, "peak_memory": place.peak(),
            "converged": all(bool(fit.converged.all()) for fit in fits),
        }  # fmt: skip
        yield result
    for timed in time_scikit_learn(problems, fits, basis, theirs):
        result = result | {"scikit_learn": timed | {"seconds_all_sites_at_least": timed["seconds_per_site"] * sites}}
        result["ratio_at_least"] = result["scikit_learn"]["seconds_all_sites_at_least"] / result["seconds_all_sites"]
        yield result


def time_scikit_learn(
    problems: Problems, fits: list[LogisticFit], basis: Basis, seconds: float
) -> Iterator[dict[str, Any]]:
    """Seconds of one fold of each kind of problem (classes, strength), the quickest kinds first, until time is over.

    ``fits`` and ``basis`` are the solutions of ``solve_site``. ``seconds_per_site`` counts all folds of the kinds that
    were timed and no others: a lower bound. ``objective_above_ours`` is the relative difference of the objectives.
    """
    from sklearn.linear_model import LogisticRegression

    began = time.perf_counter()
    x = ((problems.x - basis.centre) / basis.scale).cpu()
    kinds = [(level, target) for level in range(len(problems.strengths)) for target in reversed(range(len(CLASSES)))]
    times: dict[str, float] = {}
    above: dict[str, float] = {}
    for level, target in kinds:
        if times and time.perf_counter() - began > seconds:
            break
        train = (problems.fold[target] != 0).cpu()
        labels, strength = problems.labels[target].cpu()[train], problems.strengths[level]
        one = Problem(x[train].double(), labels, CLASSES[target], strength)
        inputs = x[train].numpy()
        start = time.perf_counter()
        model = LogisticRegression(C=1 / strength, tol=_SKLEARN_TOL, max_iter=5000).fit(inputs, labels.numpy())
        kind = f"{CLASSES[target]} classes, strength {strength:g}"
        times[kind] = time.perf_counter() - start
        weight, bias = fits[level].linear(target * FOLDS)
        ours = one.objective((weight @ basis.rotation.T).double().cpu(), bias.double().cpu())
        found = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
        above[kind] = float(one.objective(*found) / ours) - 1
        yield {
            "seconds": dict(times), "kinds_timed": len(times), "kinds": len(kinds), "tol": _SKLEARN_TOL,
            "seconds_per_site": FOLDS * sum(times.values()), "objective_above_ours": dict(above),
        }  # fmt: skip


STEP = Step(
    "probes", "batched logistic probes at 33 sites x 10,000 x 4,096, against scikit-learn on the CPU", 0.9, plan,
    needs=("sklearn", "threadpoolctl"),
)  # fmt: skip
