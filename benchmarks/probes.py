"""Time the batched logistic solver against a loop over scikit-learn, both stopped by the same measured gap.

    python -m benchmarks.probes                            # 12 sites x 4 targets x 5 folds x 5 strengths, 4,000 x 1,024
    python -m benchmarks.probes --size sweep --run runs/smol   # the problems of `make sweep`, from its activations
    python -m benchmarks.probes --device cuda --size llava-7b  # 33 sites, 10,000 x 4,096

The gap is (objective - minimum) / minimum, measured in float64. Ours stops by its own estimate of the gap. Each problem
of the scikit-learn loop starts from zero and is fitted at decreasing tolerances; the time of the first one that reaches
the gap counts. The minimum is our solver's in float64. Half of its squared gradient over the strength, which bounds its
distance from the true minimum (the objective is strongly convex), is in the record.

The full loop would take hours. A seeded fold of every target and strength is timed at each sampled site, and
extrapolated. The two sides take turns in one process with the same number of threads.
"""

import random
import statistics
import sys
import time
from collections.abc import Iterator
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
OUR_TOL = 4e-7  # the estimate of the gap is up to 2.5 times too small
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
    bounds: list[float] = []
    problems = None
    for site, problems in enumerate(sampled):
        if site == 0:
            solve_site(problems.first(200), OUR_TOL)  # warm-up
        _wait(problems.x)
        start = now()
        basis, fits = solve_site(problems, OUR_TOL)
        _wait(problems.x)
        ours.append(now() - start)
        print(f"site {site}, batched, {ours[-1]:.2f} s", file=sys.stderr)
        scaled = ((problems.x - basis.centre) / basis.scale).cpu()
        here = Problems(
            scaled, [t.cpu() for t in problems.labels], [f.cpu() for f in problems.fold], problems.classes,
            problems.strengths,
        )  # fmt: skip
        folds = [draw.randrange(FOLDS) for _ in problems.classes]
        sample, least, bound = minima(here, scaled, folds)
        bounds.append(bound)
        for (target, level), problem in sample.items():
            weight, bias = fits[level].linear(target * FOLDS + folds[target])
            coef = (weight @ basis.rotation.T).double().cpu()
            minimum = least[target, level]
            gap = float(problem.objective(coef, bias.double().cpu())) / minimum - 1
            inputs, labels = problem.x.float().numpy(), problem.labels.numpy()
            for tol in SKLEARN_TOLS:
                start = now()
                model = LogisticRegression(C=1 / problem.strength, tol=tol, max_iter=20_000).fit(inputs, labels)
                seconds = now() - start
                found = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
                their_gap = float(problem.objective(*found)) / minimum - 1
                if their_gap <= GAP:
                    break
            rows.append(
                {
                    "target": target, "level": level, "ours_gap": gap, "sklearn_gap": their_gap, "sklearn_tol": tol,
                    "sklearn_seconds": seconds, "site": site,
                }
            )  # fmt: skip
            print(
                f"site {site}, {problem.classes} classes, strength {problem.strength:g}: scikit-learn {seconds:.2f} s, "
                f"gaps {their_gap:.1e} (tol {tol:.0e}), ours {gap:.1e}",
                file=sys.stderr,
            )
    assert problems is not None
    cells = {(row["target"], row["level"]) for row in rows}
    by_cell = {cell: [r["sklearn_seconds"] for r in rows if (r["target"], r["level"]) == cell] for cell in cells}
    by_site = [FOLDS * sum(r["sklearn_seconds"] for r in rows if r["site"] == site) for site in range(len(ours))]
    ratios = [theirs / mine for theirs, mine in zip(by_site, ours, strict=True)]
    return {
        "sites": number,
        "sites_timed": len(ours),
        "examples_per_site": problems.x.shape[0],
        "d_model": problems.x.shape[1],
        "classes": problems.classes,
        "folds": FOLDS,
        "strengths": problems.strengths,
        "dtype": "float32 on both sides",
        "gap": GAP,
        "ours_largest_gap": max(row["ours_gap"] for row in rows),
        "sklearn_largest_gap": max(row["sklearn_gap"] for row in rows),
        "largest_bound_of_the_minimum": max(bounds),
        "ours_seconds_per_site": ours,
        "ours_seconds_all_sites": statistics.median(ours) * number,
        "sklearn_problems_timed": len(rows),
        "sklearn_problems_in_all": number * len(cells) * FOLDS,
        "sklearn_seconds_all_sites_extrapolated": statistics.median(by_site) * number,
        "sklearn_median_seconds": {
            f"{problems.classes[t]} classes, strength {problems.strengths[s]:g}": statistics.median(by_cell[t, s])
            for t, s in sorted(cells)
        },
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "tolerances": {"ours": OUR_TOL, "sklearn": sorted({row["sklearn_tol"] for row in rows})},
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
