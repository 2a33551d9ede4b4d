"""Time the batched logistic solver against a loop over scikit-learn, and compare their solutions.

    python -m benchmarks.probes                            # 12 sites x 4 targets x 5 folds x 5 strengths, 4,000 x 1,024
    python -m benchmarks.probes --device cuda --size llava-7b  # 33 sites, 10,000 x 4,096

The full loop would take hours. By default a seeded sample of its problems is timed, at least one for each target and
strength, and extrapolated by the mean; ``--full`` times all. The two take turns in one process with the same number of
threads. Each problem of the scikit-learn loop starts from zero coefficients.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.record import heading, machine, options, table, write_record
from probes.linear.solver import LogisticFit, rotate, solve_logistic

SIZES = {"cpu": (12, 4000, 1024), "llava-7b": (33, 10_000, 4096), "small": (12, 1000, 256), "tiny": (2, 400, 64)}
# On a shared machine, the processor time of one thread excludes waiting.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLASSES = (42, 7, 4, 2)  # numbers of kinds, of colours, of places, and of answers to a yes/no question
STRENGTHS = (10_000.0, 1000.0, 100.0, 10.0, 1.0)
FOLDS = 5
# The two solvers define tolerance differently, and scikit-learn computes float32 data in float32. On 400 x 64 data,
# coefficients differ from float64 solutions by at most 1.1e-3 (scikit-learn) and 7e-4 (ours).
SKLEARN_TOL, OUR_TOL = 1e-6, 3e-4


def make_site(site: int, n: int, d: int, device: str) -> tuple[Tensor, list[Tensor]]:
    """Activations with a decaying spectrum, and noisy labels that are linear in them, drawn on ``device``."""
    generator = torch.Generator(device).manual_seed(site)
    scale = torch.arange(1, d + 1, device=device) ** -0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    x = (normal(n, d) * scale) @ torch.linalg.qr(normal(d, d))[0]
    targets = []
    for classes in CLASSES:
        z = (x / x.std(0)) @ normal(d, classes) * (3 / d**0.5)
        noise = -torch.rand(n, classes, generator=generator, device=device).log().neg().log()
        targets.append((z + noise).argmax(1))
        # each class occurs twice, in different folds, so that no training set lacks it
        targets[-1][: 2 * classes] = torch.arange(2 * classes, device=device) % classes
    return x, targets


def solve_site(x: Tensor, targets: list[Tensor], tol: float) -> tuple[Any, list[LogisticFit]]:
    """Solve all problems of a site, from strong to weak penalties; each starts from the solution before it."""
    basis = rotate(x)
    labels = torch.stack([t for t in targets for _ in range(FOLDS)])
    fold = torch.arange(len(x), device=x.device) % FOLDS
    weights = torch.stack([(fold != k).float() for k in range(FOLDS)]).repeat(len(targets), 1)
    sizes = [k for k in CLASSES for _ in range(FOLDS)]
    fits: list[LogisticFit] = []
    for strength in STRENGTHS:
        level = x.new_full((len(sizes),), strength)
        fits.append(solve_logistic(basis, labels, weights, sizes, level, start=fits[-1] if fits else None, tol=tol))
    return basis, fits


def tighten(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients of the same problem in float64, continued from ``model`` to a gradient of 1e-10."""
    further = LogisticRegression(C=model.C, tol=1e-10, max_iter=20_000, warm_start=True)
    for name in ("coef_", "intercept_", "classes_"):
        setattr(further, name, np.asarray(getattr(model, name), dtype=np.float64))
    return np.asarray(further.fit(x.astype(np.float64), y).coef_)


def time_scikit_learn(
    x: np.ndarray, targets: list[np.ndarray], fits: list[LogisticFit], basis: Any, seconds: float
) -> Iterator[dict[str, Any]]:
    """Seconds of one fold of each kind of problem (classes, strength), the quickest kinds first, until time is over.

    ``x`` are one site's activations, centred and scaled; ``fits`` and ``basis`` are the solutions of ``solve_site``.
    ``seconds_per_site`` counts all folds of the kinds that were timed and no others: a lower bound.
    """
    began = time.perf_counter()
    train = np.arange(len(x)) % FOLDS != 0
    times: dict[str, float] = {}
    largest = 0.0
    for level, target in (
        (level, target) for level in range(len(STRENGTHS)) for target in reversed(range(len(CLASSES)))
    ):
        if times and time.perf_counter() - began > seconds:
            break
        start = time.perf_counter()
        model = LogisticRegression(C=1 / STRENGTHS[level], tol=SKLEARN_TOL, max_iter=5000).fit(
            x[train], targets[target][train]
        )
        times[f"{CLASSES[target]} classes, strength {STRENGTHS[level]:g}"] = time.perf_counter() - start
        weight, _ = fits[level].linear(target * FOLDS)
        found = (weight @ basis.rotation.T).double().cpu().numpy()
        largest = max(largest, float(np.abs(found - model.coef_).max()))
        yield {
            "seconds": dict(times), "kinds_timed": len(times), "kinds": len(CLASSES) * len(STRENGTHS),
            "seconds_per_site": FOLDS * sum(times.values()), "largest_difference_of_coefficients": largest,
        }  # fmt: skip


def run(size: str, device: str, *, full: bool, repeats: int, budget: float, clock: str) -> dict[str, Any]:
    """Seconds of both solvers, their ratio, and the largest differences between coefficients."""
    sites, n, d = SIZES[size]
    rng = np.random.default_rng(0)
    now = CLOCKS[clock]
    ours: list[float] = []
    cells = [(target, level) for target in range(len(CLASSES)) for level in range(len(STRENGTHS))]
    theirs: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    differences: dict[str, list[float]] = {"between_sides": [], "ours_from_optimum": [], "sklearn_from_optimum": []}
    largest = 0.0
    converged = True
    begin = time.perf_counter()
    for repeat in range(sites if full else repeats):
        x, targets = make_site(repeat, n, d, device)
        if repeat == 0:
            solve_site(x[:200], [t[:200] for t in targets], OUR_TOL)  # warm-up
        if device == "cuda":
            torch.cuda.synchronize()
        start = now()
        basis, fits = solve_site(x, targets, OUR_TOL)
        if device == "cuda":
            torch.cuda.synchronize()
        ours.append(now() - start)
        print(f"site {repeat}, batched, {ours[-1]:.1f} s", file=sys.stderr)
        converged &= all(bool(fit.converged.all()) for fit in fits)
        scaled = ((x - basis.centre) / basis.scale).cpu().numpy()
        rng.shuffle(cells)
        cells.sort(key=lambda cell: len(theirs[cell]))  # least sampled first
        for target, level in cells:
            if time.perf_counter() - begin > budget and not full and theirs[target, level]:
                continue
            print(f"site {repeat}, {CLASSES[target]} classes, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
            for k in range(FOLDS) if full else [int(rng.integers(FOLDS))]:
                train = np.arange(n) % FOLDS != k
                inputs, labels = scaled[train], targets[target].cpu().numpy()[train]
                start = now()
                model = LogisticRegression(C=1 / STRENGTHS[level], tol=SKLEARN_TOL, max_iter=5000).fit(inputs, labels)
                theirs[target, level].append(now() - start)
                weight, _ = fits[level].linear(target * FOLDS + k)
                coef = (weight @ basis.rotation.T).double().cpu().numpy()
                optimum = tighten(model, inputs, labels)
                pairs = ((coef, model.coef_), (coef, optimum), (model.coef_, optimum))
                for found, (one, other) in zip(differences.values(), pairs, strict=True):
                    found.append(float(np.abs(one - other).max()))
                largest = max(largest, float(np.abs(model.coef_).max()))
        if not full and time.perf_counter() - begin > budget:
            break
    per_site = sum(FOLDS * statistics.mean(times) for times in theirs.values())
    ratios = [per_site / seconds for seconds in ours]
    return {
        "sites": sites,
        "examples_per_site": n,
        "d_model": d,
        "classes": CLASSES,
        "folds": FOLDS,
        "strengths": STRENGTHS,
        "dtype": "float32 on both sides",
        "ours_seconds_per_site": ours,
        "ours_seconds_all_sites": statistics.median(ours) * sites,
        "ours_all_converged": converged,
        "sklearn_problems_timed": sum(map(len, theirs.values())),
        "sklearn_problems_in_all": sites * len(theirs) * FOLDS,
        "sklearn_seconds_timed": sum(map(sum, theirs.values())),
        "sklearn_seconds_all_sites_extrapolated": per_site * sites,
        "sklearn_mean_seconds": {
            f"{CLASSES[t]} classes, strength {STRENGTHS[s]:g}": statistics.mean(v) for (t, s), v in theirs.items()
        },
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "largest_difference_of_coefficients": {side: max(found) for side, found in differences.items()},
        "largest_coefficient": largest,
        "tolerances": {"ours": OUR_TOL, "sklearn": SKLEARN_TOL},
    }


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options(__doc__, repeats=5)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--full", action="store_true", help="time every problem in scikit-learn")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds after which no further problem is sampled")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu only with --threads 1")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    record: dict[str, Any] = {"size": given.size, "clock": given.clock, **machine(given.device)}
    lines = heading("Batched logistic probes against a scikit-learn loop", record)
    if "not_run" in record:
        lines += ["", f"Not yet run: {record['not_run']}"]
    else:
        with threadpool_limits(given.threads):
            found = run(
                given.size, given.device, full=given.full, repeats=given.repeats, budget=given.budget,
                clock=given.clock,
            )  # fmt: skip
        record |= found
        lines += table(("", ""), ((key.replace("_", " "), value) for key, value in found.items()))
        lines += ["", "Both sides ran in turn in one process. The optimum is scikit-learn's in float64, not timed."]
    write_record(given.out, f"probes-{given.size}-{given.device}", record, "\n".join(lines))


if __name__ == "__main__":
    main()
