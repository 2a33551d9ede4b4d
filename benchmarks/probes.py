"""Time the batched logistic solver against a loop over scikit-learn, both stopped by the same measured gap.

    python -m benchmarks.probes                            # 12 sites x 4 targets x 5 folds x 5 strengths, 4,000 x 1,024
    python -m benchmarks.probes --size sweep --run runs/smol   # the problems of `make sweep`, from its activations
    python -m benchmarks.probes --device cuda --size llava-7b  # 33 sites, 10,000 x 4,096

The gap is (objective - minimum) / minimum, measured in float64. Ours stops by its own estimate of the gap. Both sides
are run at decreasing tolerances, and the time of the first one that reaches the gap counts: ours for the whole site,
scikit-learn's, which starts from zero, for each problem. Where scikit-learn does not reach it in float32 (its line
search ends in rounding), the problem is fitted in float64. The minimum is our solver's in float64. Half of its squared
gradient over the strength, which bounds its distance from the true minimum (the objective is strongly convex), is in
the record.

The full loop would take hours. A seeded fold of every target and strength is timed at each sampled site, and
extrapolated. The two sides take turns in one process with the same number of threads.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.record import heading, machine, options, table, write_record
from models.sites import Site
from probes.activations.fill import shard_size
from probes.activations.store import ActivationStore
from probes.config import SweepConfig
from probes.evaluation.cross_validation import STRENGTHS as SWEEP_STRENGTHS
from probes.linear.solver import Basis, LogisticFit, rotate, solve_logistic
from probes.probe_data import fold_plans, select

SIZES = {"cpu": (12, 4000, 1024), "llava-7b": (33, 10_000, 4096), "small": (12, 1000, 256), "tiny": (2, 400, 64)}
# On a shared machine, the processor time of one thread excludes waiting.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLASSES = (42, 7, 4, 2)  # numbers of kinds, of colours, of places, and of answers to a yes/no question
STRENGTHS = (10_000.0, 1000.0, 100.0, 10.0, 1.0)
FOLDS = 5
GAP = 1e-6
OUR_TOLS = (4e-7, 2e-7, 1e-7)  # of the estimated gap, which is up to four times too small
SKLEARN_TOLS = tuple(10 ** (-power / 2) for power in range(5, 17))  # 3e-3 to 1e-8, by factors of the root of ten


@dataclass(frozen=True)
class Problems:
    """All probes of one site, except for their strengths."""

    x: Tensor
    """Activations, "example d_model"."""
    labels: list[Tensor]
    """Class codes by target."""
    fold: list[Tensor]
    """The fold of each example, by target."""
    classes: list[int]
    """Numbers of classes by target."""
    strengths: tuple[float, ...]
    """Penalties, strong to weak."""

    def first(self, n: int) -> "Problems":
        """Two-class problems on the first examples, to warm up."""
        labels = [t[:n] % 2 for t in self.labels]
        return Problems(self.x[:n], labels, [f[:n] for f in self.fold], [2] * len(labels), self.strengths)


def make_site(site: int, n: int, d: int, device: str) -> Problems:
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
    fold = torch.arange(n, device=device) % FOLDS
    return Problems(x, targets, [fold] * len(CLASSES), list(CLASSES), STRENGTHS)


def sweep_sites(run: Path) -> list[Problems]:
    """The problems of `make sweep`: its targets, folds, strengths and activations; one entry a site and token group."""
    config = SweepConfig()
    data = select(config)
    store = ActivationStore(run / "activations", len(data.examples), shard_size(config.batch_size))
    found = []
    for group, plan in fold_plans(data, config).items():
        fitted = torch.from_numpy(plan.fitted)
        targets = [t for t in plan.targets.values() if t.kind == "class"]
        for folder in sorted(path for path in store.root.iterdir() if path.is_dir()):
            x = store.read(Site.parse(folder.name), group).float()[fitted]
            labels = [torch.from_numpy(t.truth)[fitted] for t in targets]
            folds = [torch.from_numpy(t.fold)[fitted] for t in targets]
            found.append(Problems(x, labels, folds, [len(t.classes) for t in targets], tuple(SWEEP_STRENGTHS)))
    return found


def solve_site(problems: Problems, tol: float) -> tuple[Basis, list[LogisticFit]]:
    """Solve all problems of a site, from strong to weak penalties; each starts from the solution before it."""
    basis = rotate(problems.x)
    folds = range(FOLDS)
    labels = torch.stack([t for t in problems.labels for _ in folds])
    weights = torch.stack([(fold != k).to(problems.x.dtype) for fold in problems.fold for k in folds])
    sizes = [k for k in problems.classes for _ in folds]
    return basis, _path(basis, labels, weights, sizes, problems.strengths, tol)


def _path(
    basis: Basis, labels: Tensor, weights: Tensor, sizes: list[int], strengths: tuple[float, ...], tol: float
) -> list[LogisticFit]:
    fits: list[LogisticFit] = []
    for strength in strengths:
        level = basis.rows.new_full((len(sizes),), strength)
        fits.append(
            solve_logistic(
                basis, labels, weights, sizes, level, start=fits[-1] if fits else None, tol=tol, max_iter=5000
            )
        )
    return fits


@dataclass(frozen=True)
class Problem:
    """One problem in float64, with its minimum."""

    x: Tensor
    labels: Tensor
    classes: int
    strength: float

    def objective(self, coef: Tensor, intercept: Tensor) -> Tensor:
        """``sum log_loss + strength / 2 * |coef|^2``."""
        logits = self.x @ coef.T + intercept
        if self.classes == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        loss = torch.nn.functional.cross_entropy(logits, self.labels, reduction="sum")
        return loss + self.strength / 2 * coef.square().sum()

    def bound(self, coef: Tensor, intercept: Tensor) -> tuple[float, float]:
        """The objective, and an upper bound of its distance from the minimum, relative to it."""
        coef, intercept = coef.clone().requires_grad_(), intercept.clone().requires_grad_()
        value = self.objective(coef, intercept)
        by_coef, by_intercept = torch.autograd.grad(value, (coef, intercept))
        # The gradient with respect to the intercept is rounding; the bound holds where it is zero.
        assert by_intercept.abs().max().item() < 1e-6 * len(self.x)
        return value.item(), (by_coef.square().sum() / (2 * self.strength) / value).item()


@dataclass(frozen=True)
class Theirs:
    """scikit-learn's fit of one problem."""

    seconds: float
    gap: float
    tol: float
    dtype: str


def fit_sklearn(problem: Problem, minimum: float, now: Callable[[], float]) -> Theirs:
    """scikit-learn's first fit that reaches the gap: in float32 at decreasing tolerances, else in float64."""
    labels = problem.labels.numpy()
    for dtype in (torch.float32, torch.float64):
        inputs = problem.x.to(dtype).numpy()
        for tol in SKLEARN_TOLS:
            start = now()
            model = LogisticRegression(C=1 / problem.strength, tol=tol, max_iter=20_000).fit(inputs, labels)
            seconds = now() - start
            coef, intercept = (torch.from_numpy(part).double() for part in (model.coef_, model.intercept_))
            gap = float(problem.objective(coef, intercept)) / minimum - 1
            if gap <= GAP:
                return Theirs(seconds, gap, tol, str(inputs.dtype))
    raise RuntimeError(f"scikit-learn stops at a gap of {gap:.1e}, which is more than {GAP:.0e}.")


def minima(problems: Problems, scaled: Tensor, folds: list[int]) -> tuple[dict[tuple[int, int], Problem], Any, float]:
    """One problem of each target and strength, their minima, and the largest bound of the gap of such a minimum."""
    wide = scaled.double()
    basis = rotate(wide, standardise=False)
    weights = torch.stack([(fold != k).double() for fold, k in zip(problems.fold, folds, strict=True)])
    fits = _path(basis, torch.stack(problems.labels), weights, problems.classes, problems.strengths, 1e-13)
    found: dict[tuple[int, int], Problem] = {}
    least: dict[tuple[int, int], float] = {}
    worst = 0.0
    for target, classes in enumerate(problems.classes):
        train = problems.fold[target] != folds[target]
        for level, strength in enumerate(problems.strengths):
            problem = Problem(wide[train], problems.labels[target][train], classes, strength)
            weight, bias = fits[level].linear(target)
            coef = weight @ basis.rotation.T
            value, bound = problem.bound(coef, bias - coef @ basis.centre)
            found[target, level], least[target, level] = problem, value
            worst = max(worst, bound)
    return found, least, worst


def sites_of(size: str, device: str, run: Path | None, repeats: int) -> tuple[int, Iterator[Problems]]:
    """The number of sites of a whole sweep, and the sampled ones."""
    if size == "sweep":
        assert run is not None
        sites = sweep_sites(run)
        picks = np.linspace(0, len(sites) - 1, min(repeats, len(sites))).round().astype(int)
        return len(sites), (sites[i] for i in picks)
    number, n, d = SIZES[size]
    return number, (make_site(site, n, d, device) for site in range(min(repeats, number)))


def _wait(x: Tensor) -> None:
    """Wait for the device of a tensor."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def time_sites(number: int, sampled: Iterator[Problems], *, clock: str) -> dict[str, Any]:
    """Seconds of both solvers, their ratio, and the gaps at which they stopped."""
    draw = random.Random(0)
    now = CLOCKS[clock]
    rows: list[dict[str, Any]] = []
    ours: list[float] = []
    tols: list[float] = []
    bounds: list[float] = []
    shapes: set[tuple[int, ...]] = set()
    for site, problems in enumerate(sampled):
        if site == 0:
            solve_site(problems.first(200), OUR_TOLS[0])  # warm-up
        folds = [draw.randrange(FOLDS) for _ in problems.classes]
        sample: dict[tuple[int, int], Problem] = {}
        for tol in OUR_TOLS:
            _wait(problems.x)
            start = now()
            basis, fits = solve_site(problems, tol)
            _wait(problems.x)
            seconds = now() - start
            if not sample:
                scaled = ((problems.x - basis.centre) / basis.scale).cpu()
                labels, fold = [t.cpu() for t in problems.labels], [f.cpu() for f in problems.fold]
                here = Problems(scaled, labels, fold, problems.classes, problems.strengths)
                sample, least, bound = minima(here, scaled, folds)
            gaps = {}
            for (target, level), problem in sample.items():
                weight, bias = fits[level].linear(target * FOLDS + folds[target])
                coef = (weight @ basis.rotation.T).double().cpu()
                gaps[target, level] = float(problem.objective(coef, bias.double().cpu())) / least[target, level] - 1
            if max(gaps.values()) <= GAP:
                break
        else:
            raise RuntimeError(f"the solver stops at a gap of {max(gaps.values()):.1e}, which is more than {GAP:.0e}.")
        print(
            f"site {site}, batched, {seconds:.2f} s, largest gap {max(gaps.values()):.1e} (tol {tol:.0e})",
            file=sys.stderr,
        )
        ours.append(seconds)
        tols.append(tol)
        bounds.append(bound)
        shapes.add(tuple(problems.x.shape))
        for cell, problem in sample.items():
            theirs = fit_sklearn(problem, least[cell], now)
            rows.append(
                {
                    "classes": problem.classes, "strength": problem.strength,
                    "ours_gap": gaps[cell], "sklearn_gap": theirs.gap, "sklearn_tol": theirs.tol,
                    "sklearn_dtype": theirs.dtype, "sklearn_seconds": theirs.seconds, "site": site,
                }
            )  # fmt: skip
            print(
                f"site {site}, {problem.classes} classes, strength {problem.strength:g}: scikit-learn "
                f"{theirs.seconds:.2f} s in {theirs.dtype}, gaps {theirs.gap:.1e} (tol {theirs.tol:.0e}), "
                f"ours {gaps[cell]:.1e}",
                file=sys.stderr,
            )
    cells = sorted({(row["classes"], row["strength"]) for row in rows}, reverse=True)
    by_cell = {c: [r["sklearn_seconds"] for r in rows if (r["classes"], r["strength"]) == c] for c in cells}
    by_site = [FOLDS * sum(r["sklearn_seconds"] for r in rows if r["site"] == site) for site in range(len(ours))]
    ratios = [loop / mine for loop, mine in zip(by_site, ours, strict=True)]
    return {
        "sites": number,
        "sites_timed": len(ours),
        "examples_x_d_model": sorted(shapes),
        "classes": sorted({classes for classes, _ in cells}, reverse=True),
        "folds": FOLDS,
        "strengths": sorted({strength for _, strength in cells}, reverse=True),
        "dtype": "float32, but for problems of scikit-learn that need float64",
        "sklearn_problems_in_float64": sum(row["sklearn_dtype"] == "float64" for row in rows),
        "gap": GAP,
        "ours_largest_gap": max(row["ours_gap"] for row in rows),
        "sklearn_largest_gap": max(row["sklearn_gap"] for row in rows),
        "largest_bound_of_the_minimum": max(bounds),
        "ours_seconds_per_site": ours,
        "ours_seconds_all_sites": statistics.mean(ours) * number,
        "sklearn_problems_timed": len(rows),
        "sklearn_problems_in_all": round(len(rows) / len(ours) * number * FOLDS),
        "sklearn_seconds_all_sites_extrapolated": statistics.mean(by_site) * number,
        "sklearn_median_seconds": {
            f"{classes} classes, strength {strength:g}": statistics.median(by_cell[classes, strength])
            for classes, strength in cells
        },
        "ratio_of_sums": sum(by_site) / sum(ours),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "tolerances": {"ours": sorted({*tols}), "sklearn": sorted({row["sklearn_tol"] for row in rows})},
    }


def main() -> None:
    """Run the benchmark, write and print the record."""
    parser = options(__doc__, repeats=5)
    parser.add_argument("--size", choices=(*SIZES, "sweep"), default="cpu")
    parser.add_argument("--run", type=Path, help="the run directory of `make sweep`, for --size sweep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu only with --threads 1")
    given = parser.parse_args()
    if (given.size == "sweep") != (given.run is not None):
        parser.error("--size sweep and --run belong together")
    torch.set_num_threads(given.threads)
    record: dict[str, Any] = {"size": given.size, "clock": given.clock, **machine(given.device)}
    lines = heading("Batched logistic probes against a scikit-learn loop", record)
    if "not_run" in record:
        lines += ["", f"Not yet run: {record['not_run']}"]
    else:
        with threadpool_limits(given.threads):
            found = time_sites(*sites_of(given.size, given.device, given.run, given.repeats), clock=given.clock)
        record |= found
        lines += table(("", ""), ((key.replace("_", " "), value) for key, value in found.items()))
        lines += ["", "Both sides ran in turn in one process and were stopped by the same gap, measured in float64."]
    write_record(given.out, f"probes-{given.size}-{given.device}", record, "\n".join(lines))


if __name__ == "__main__":
    main()
