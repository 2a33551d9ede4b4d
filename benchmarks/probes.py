"""Time the batched logistic solver against a loop over scikit-learn, and compare their solutions.

    python -m benchmarks.probes                            # 12 sites x 4 targets x 5 folds x 5 strengths, 4,000 x 1,024
    python -m benchmarks.probes --device cuda --size llava-7b  # 33 sites, 10,000 x 4,096

The whole loop would take hours. By default a seeded sample of its problems is timed, at least one for each target and
strength, and extrapolated by the mean; ``--full`` times all. Both sides run in turn in one process with the same number
of threads. Every problem of the loop starts cold, as by hand.
"""

import os
import platform
import statistics
import sys
import time
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.record import commit, options, processor, write_record
from probes.linear.solver import LogisticFit, rotate, solve_logistic

SIZES = {"cpu": (12, 4000, 1024), "llava-7b": (33, 10_000, 4096), "small": (12, 1000, 256), "tiny": (2, 400, 64)}
# On a shared machine, processor time of one thread leaves out waiting.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLASSES = (42, 7, 4, 2)  # as many as kind, colour, place and a yes/no question have
STRENGTHS = (10_000.0, 1000.0, 100.0, 10.0, 1.0)
FOLDS = 5
# The two sides define tolerance differently, and scikit-learn computes float32 data in float32. Against float64
# solutions (400 x 64), coefficients are within 1.1e-3 (scikit-learn) and 7e-4 (ours).
SKLEARN_TOL, OUR_TOL = 1e-6, 3e-4


def make_site(site: int, n: int, d: int, device: str) -> tuple[Tensor, list[Tensor]]:
    """Activations with a decaying spectrum, and noisy labels that are linear in them."""
    generator = torch.Generator().manual_seed(site)
    scale = torch.arange(1, d + 1) ** -0.5
    x = (torch.randn(n, d, generator=generator) * scale) @ torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    targets = []
    for classes in CLASSES:
        z = (x / x.std(0)) @ torch.randn(d, classes, generator=generator) * (3 / d**0.5)
        noise = -torch.rand(n, classes, generator=generator).log().neg().log()
        targets.append((z + noise).argmax(1))
        # each class twice, in different folds, so that no training set lacks one
        targets[-1][: 2 * classes] = torch.arange(2 * classes) % classes
    return x.to(device), [t.to(device) for t in targets]


def training_weights(n: int, device: str) -> Tensor:
    """Weights of the five training sets, one row each."""
    fold = torch.arange(n, device=device) % FOLDS
    return torch.stack([(fold != k).float() for k in range(FOLDS)])


def solve_site(x: Tensor, targets: list[Tensor], tol: float) -> tuple[Any, list[LogisticFit]]:
    """Solve all problems of a site, from strong to weak penalties, each started from the one before."""
    basis = rotate(x)
    labels = torch.stack([t for t in targets for _ in range(FOLDS)])
    weights = training_weights(len(x), str(x.device)).repeat(len(targets), 1)
    sizes = [k for k in CLASSES for _ in range(FOLDS)]
    fits: list[LogisticFit] = []
    for strength in STRENGTHS:
        level = x.new_full((len(sizes),), strength)
        fits.append(solve_logistic(basis, labels, weights, sizes, level, start=fits[-1] if fits else None, tol=tol))
    return basis, fits


def solve_one(x: np.ndarray, y: np.ndarray, strength: float, clock: str) -> tuple[float, LogisticRegression]:
    """Seconds and model of one problem in scikit-learn."""
    start = CLOCKS[clock]()
    model = LogisticRegression(C=1 / strength, tol=SKLEARN_TOL, max_iter=5000).fit(x, y)
    return CLOCKS[clock]() - start, model


def tighten(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients of the same problem in float64, continued from ``model`` to a gradient of 1e-10."""
    further = LogisticRegression(C=model.C, tol=1e-10, max_iter=20_000, warm_start=True)
    for name in ("coef_", "intercept_", "classes_"):
        setattr(further, name, np.asarray(getattr(model, name), dtype=np.float64))
    return np.asarray(further.fit(x.astype(np.float64), y).coef_)


def run(size: str, device: str, *, full: bool, repeats: int, budget: float, threads: int, clock: str) -> dict[str, Any]:
    """The record: seconds of both sides, their ratio, and the largest difference between coefficients."""
    sites, n, d = SIZES[size]
    rng = np.random.default_rng(0)
    ours: list[float] = []
    theirs: dict[tuple[int, int], list[float]] = {
        (t, s): [] for t in range(len(CLASSES)) for s in range(len(STRENGTHS))
    }
    differences: list[float] = []
    from_optimum: dict[str, list[float]] = {"ours": [], "sklearn": []}
    norms: list[float] = []
    converged = True
    begin = time.perf_counter()
    for repeat in range(sites if full else repeats):
        x, targets = make_site(repeat, n, d, device)
        if repeat == 0:
            solve_site(x[:200], [t[:200] for t in targets], OUR_TOL)  # warm-up
        if device == "cuda":
            torch.cuda.synchronize()
        start = CLOCKS[clock]()
        basis, fits = solve_site(x, targets, OUR_TOL)
        if device == "cuda":
            torch.cuda.synchronize()
        ours.append(CLOCKS[clock]() - start)
        print(f"site {repeat}, batched, {ours[-1]:.1f} s", file=sys.stderr)
        converged &= all(bool(fit.converged.all()) for fit in fits)
        scaled = ((x - basis.centre) / basis.scale).cpu().numpy()
        cells = list(theirs)
        rng.shuffle(cells)
        cells.sort(key=lambda cell: len(theirs[cell]))  # least sampled first
        for target, s in cells:
            late = time.perf_counter() - begin > budget
            if late and not full and theirs[target, s]:
                continue
            print(f"site {repeat}, {CLASSES[target]} classes, {time.perf_counter() - begin:.0f} s", file=sys.stderr)
            for k in range(FOLDS) if full else [int(rng.integers(FOLDS))]:
                train = np.arange(n) % FOLDS != k
                seconds, model = solve_one(scaled[train], targets[target].cpu().numpy()[train], STRENGTHS[s], clock)
                theirs[target, s].append(seconds)
                weight, _ = fits[s].linear(target * FOLDS + k)
                coef = (weight @ basis.rotation.T).double().cpu().numpy()
                differences.append(float(np.abs(coef - model.coef_).max()))
                optimum = tighten(model, scaled[train], targets[target].cpu().numpy()[train])
                from_optimum["ours"].append(float(np.abs(coef - optimum).max()))
                from_optimum["sklearn"].append(float(np.abs(model.coef_ - optimum).max()))
                norms.append(float(np.abs(model.coef_).max()))
        if not full and time.perf_counter() - begin > budget:
            break
    per_site = sum(FOLDS * statistics.mean(times) for times in theirs.values())
    ratios = [per_site / seconds for seconds in ours]
    return {
        "size": size,
        "sites": sites,
        "n": n,
        "d": d,
        "classes": CLASSES,
        "folds": FOLDS,
        "strengths": STRENGTHS,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": threads,
        "clock": clock,
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
        "largest_coefficient_difference": max(differences),
        "largest_difference_from_optimum": {side: max(found) for side, found in from_optimum.items()},
        "largest_coefficient": max(norms),
        "tolerances": {"ours": OUR_TOL, "sklearn": SKLEARN_TOL},
        "versions": {"torch": torch.__version__, "sklearn": sklearn.__version__, "python": platform.python_version()},
        "commit": commit(),
        "load_average_before": os.getloadavg()[0],
    }


def describe(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    if "not_run" in record:
        return f"# Batched probes, {record['size']} on {record['device']}\n\nNot yet run: {record['not_run']}\n"
    complete = record["sklearn_problems_timed"] == record["sklearn_problems_in_all"]
    extent = "all" if complete else "a sample, extrapolated"
    return f"""# Batched logistic probes against a scikit-learn loop

{record["sites"]} sites x {len(record["classes"])} targets (classes {record["classes"]}) x {record["folds"]} folds x \
{len(record["strengths"])} strengths, {record["n"]} x {record["d"]} each; {record["threads"]} threads, \
{record["clock"]} time, {record["dtype"]}.

| | batched | scikit-learn loop |
|---|---|---|
| measured | {len(record["ours_seconds_per_site"])} sites, every problem | {record["sklearn_problems_timed"]} of \
{record["sklearn_problems_in_all"]} problems ({extent}), {record["sklearn_seconds_timed"]:.0f} s |
| all sites | {record["ours_seconds_all_sites"]:.0f} s | {record["sklearn_seconds_all_sites_extrapolated"]:.0f} s |

Ratio: median {record["ratio_median"]:.1f} (from {record["ratio_min"]:.1f} to {record["ratio_max"]:.1f}). All of ours \
converged: {record["ours_all_converged"]}. Largest difference between coefficients: \
{record["largest_coefficient_difference"]:.1e} (largest coefficient {record["largest_coefficient"]:.2g}); from the \
optimum (scikit-learn in float64, to a gradient of 1e-10, not timed): ours \
{record["largest_difference_from_optimum"]["ours"]:.1e}, scikit-learn's \
{record["largest_difference_from_optimum"]["sklearn"]:.1e}. Load average before: \
{record["load_average_before"]:.1f}; both sides ran in turn in one process.
"""


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
    if given.device == "cuda" and not torch.cuda.is_available():
        record: dict[str, Any] = {"size": given.size, "device": "cuda", "not_run": "no CUDA device at hand."}
    else:
        with threadpool_limits(given.threads):
            record = run(
                given.size, given.device, full=given.full, repeats=given.repeats, budget=given.budget,
                threads=given.threads, clock=given.clock,
            )  # fmt: skip
    write_record(given.out, f"probes-{given.size}-{given.device}", record, describe(record))


if __name__ == "__main__":
    main()
