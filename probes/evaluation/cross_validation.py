"""Score probes of one activation matrix by grouped cross-validation, with controls.

plan = plan_folds({"colour": colours}, groups)     # once for all sites
result = evaluate(x, plan)["colour"]
result.score.value, result.score.lower, result.selectivity
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from probes.evaluation.folds import FoldPlan, TargetPlan
from probes.evaluation.jobs import BATCHED, Job, best_strengths, fit_estimator
from probes.evaluation.scores import (
    Permuted,
    Score,
    Source,
    permute_classes,
    permute_values,
    score_classes,
    score_values,
)
from probes.evaluation.shuffled_ridge import gain_in_error, permute_ridge
from probes.linear.registry import TargetKind, find_probe, new_probe
from probes.linear.solver import check_activations, rotate
from tasks.errors import UserError

# Weights of the L2 penalty, strong to weak, for standardised activations; scikit-learn's C = 1 / strength.
STRENGTHS = (300.0, 30.0, 3.0)
# Ridge regression on labels that cannot be read needs a penalty under which it predicts the mean: with weak ones only,
# R2 lies below that of a constant. Each costs one Cholesky factorisation.
RIDGE_STRENGTHS = (1e6, 3e4, 3e3, *STRENGTHS)
KINDS: tuple[TargetKind, ...] = ("class", "continuous")


@dataclass(frozen=True)
class Result:
    """Scores of one probe for one target."""

    target: str
    """Name of the target."""
    kind: TargetKind
    """Kind of the target."""
    probe: str
    """The fitted probe; ridge regression replaces logistic regression for continuous targets."""
    metric: str
    """The main metric, ``"balanced_accuracy"`` or ``"r2"``."""
    truth: npt.NDArray[np.generic]
    """Labels, one per example."""
    predicted: npt.NDArray[np.generic]
    """Predictions, each by a probe that was fitted without the example and its group."""
    fold: npt.NDArray[np.int64]
    """The fold of the probe that made the prediction."""
    fitted: npt.NDArray[np.bool_]
    """True for examples of the cross-validation, False for those of transfer sets."""
    strengths: tuple[float, ...]
    """The penalty chosen in each fold; empty for probes without one."""
    scores: Mapping[str, Score]
    """By metric."""
    controls: Mapping[str, Mapping[str, Score]]
    """By control (``"shuffled"``, ``"control_task"``, ``"majority"``), then metric."""
    transfer: Mapping[str, Mapping[str, Score]]
    """By transfer set, then metric."""
    permuted: Permuted
    """The main metric of the real labels and of labels shuffled over groups, in comparable units."""

    @property
    def score(self) -> Score:
        """The main score."""
        return self.scores[self.metric]

    @property
    def p_value(self) -> float:
        """Share of the shuffles over groups that score at least as well as the real labels."""
        return self.permuted.p_value

    @property
    def without_signal(self) -> float:
        """The main metric without signal: one over the number of classes, or ``chance`` for numbers."""
        return 1 / len(np.unique(self.truth[self.fitted])) if self.kind == "class" else self.chance

    @property
    def chance(self) -> float:
        """The main metric of the best constant prediction: the majority class, or the training mean (R2 near 0)."""
        return self.controls["majority"][self.metric].value

    @property
    def selectivity(self) -> float:
        """Score minus that of the control task; NaN without one. Above 0, the probe does more than memorise types."""
        control = self.controls.get("control_task")
        return float("nan") if control is None else self.score.value - control[self.metric].value


def evaluate(
    x: Float[Tensor, "example d_model"],
    plan: FoldPlan,
    *,
    probe: Any = "logistic",
    strengths: Sequence[float] | None = None,
    tol: float = 1e-6,
) -> Mapping[str, Result]:
    """Out-of-fold predictions, scores, controls, transfer scores and a p-value for every target of the plan.

    Activations are standardised and rotated once, over all fitted examples; this uses no labels. Each fold takes the
    strength with the best score on its inner folds. A control is fitted at the strength of the real target.

    Args:
        x: Activations of one site; float32 or float64, on any device.
        plan: From `plan_folds`.
        probe: A name in `probes.linear.registry.ESTIMATORS`, or an unfitted estimator with scikit-learn's interface,
            which is cloned for each fold; no strength is chosen for it.
        strengths: Penalties to choose from; None takes ``STRENGTHS``, and ``RIDGE_STRENGTHS`` for ridge regression.
        tol: Gap between objective and minimum, relative to the objective, at which the logistic solver stops. The inner
            fits, which only rank the strengths, stop at 1000 times this.

    Returns:
        Results by target.

    Raises:
        UserError: If ``x`` is not finite, has the wrong number of examples, or ``probe`` is unknown.

    Example:
        >>> import numpy as np
        >>> from probes.evaluation.folds import plan_folds
        >>> labels = np.arange(40) % 2
        >>> x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3)) + 5 * labels[:, None])
        >>> evaluate(x, plan_folds({"label": labels}, groups=range(40)))["label"].score.value
        1.0
    """
    check_activations(x)
    if len(x) != len(plan.groups):
        raise UserError(
            f"x must have one example per label ({len(plan.groups)}), got {len(x)}. Pass all of the plan's."
        )
    if strengths is not None and (not strengths or min(strengths) <= 0):
        raise UserError(f"strengths must be positive, got {list(strengths)}. Give at least one penalty.")
    predictions: dict[tuple[str, str], npt.NDArray[np.generic]] = {}
    chosen: dict[str, tuple[float, ...]] = {}
    used: dict[str, str] = {}
    permuted: dict[str, Permuted] = {}
    basis = None
    for kind in KINDS:
        targets = [t for t in plan.targets.values() if t.kind == kind]
        if not targets:
            continue
        name, estimator = find_probe(probe, kind) if isinstance(probe, str) else (type(probe).__name__, type(probe))
        fit = BATCHED.get(estimator) if isinstance(probe, str) else None
        if fit is not None:
            basis = basis or rotate(x, fitted=torch.from_numpy(plan.fitted).to(x.device))
            path = sorted(strengths or (STRENGTHS if name == "logistic" else RIDGE_STRENGTHS), reverse=True)
            ranked = partial(fit, basis, tol=1000 * tol)
            picks = choose_strengths(targets, path, plan.folds, ranked)
            jobs, at = _outer_jobs(targets, plan, picks)
            outputs = fit(basis, jobs, at, tol)[0]
            if kind == "continuous":
                for t in targets:
                    (permuted[t.name],) = permute_ridge(basis, t, plan, path, gain_in_error)
        else:
            picks = {t.name: [] for t in targets}
            jobs, at = _outer_jobs(targets, plan, {})
            unfitted = new_probe(estimator, plan.seed) if isinstance(probe, str) else probe
            outputs = fit_estimator(x, jobs, unfitted, plan.groups)
        for job, output in zip(jobs, outputs, strict=True):
            whole = predictions.setdefault((job.target.name, job.labels_of), np.zeros_like(job.labels))
            mine = job.target.fold == job.fold
            whole[mine] = output[mine]
        for t in targets:
            chosen[t.name] = tuple(picks[t.name])
            used[t.name] = name
    return {
        name: _result(t, plan, predictions, chosen[name], used[name], permuted.get(name))
        for name, t in plan.targets.items()
    }


def _outer_jobs(
    targets: Sequence[TargetPlan], plan: FoldPlan, picks: Mapping[str, Sequence[float]]
) -> tuple[list[Job], list[list[float]]]:
    jobs, strengths = [], []
    for t in targets:
        for labels_of, labels in {"real": t.truth, **t.controls}.items():
            for k in range(plan.folds):
                jobs.append(Job(t, labels_of, labels, plan.fitted & (t.fold != k), k))
                strengths.append([picks[t.name][k]] if picks else [])
    return jobs, strengths


def choose_strengths(
    targets: Sequence[TargetPlan],
    path: Sequence[float],
    folds: int,
    fit: Callable[[list[Job], list[list[float]]], list[list[npt.NDArray[np.generic]]]],
) -> dict[str, list[float]]:
    """The strength for each fold of each target with the best score on its inner folds.

    Args:
        targets: Targets with inner splits, each with the outer folds that it is scored for.
        path: Strengths, strong to weak.
        folds: Number of outer folds.
        fit: Takes jobs and the strengths of each; returns the predictions of each job by strength.
    """
    picks = {t.name: [path[len(path) // 2]] * folds for t in targets}
    jobs = [Job(t, "real", t.truth, split.train, i) for t in targets for i, split in enumerate(t.inner)]
    if len(path) == 1 or not jobs:
        return picks
    by_strength = fit(jobs, [list(path)] * len(jobs))
    for t in targets:
        sums = np.zeros((folds, len(path)))
        count = np.zeros(folds)
        for j, job in enumerate(jobs):
            if job.target is not t:
                continue
            for k, judge in t.inner[job.fold].judges:
                count[k] += 1
                for s in range(len(path)):
                    sums[k, s] += _quick_score(t, judge, by_strength[s][j][judge])
        for k in np.flatnonzero(count).tolist():
            picks[t.name][k] = path[int(best_strengths(sums[k]))]
    return picks


def _quick_score(t: TargetPlan, judge: npt.NDArray[np.bool_], predicted: npt.NDArray[np.generic]) -> float:
    truth: npt.NDArray[Any] = t.truth[judge]
    if t.kind == "continuous":
        return -float(((truth - predicted) ** 2).mean())
    total = np.bincount(truth)
    return float((np.bincount(truth, truth == predicted)[total > 0] / total[total > 0]).mean())


def _result(
    t: TargetPlan,
    plan: FoldPlan,
    predictions: Mapping[tuple[str, str], npt.NDArray[np.generic]],
    strengths: tuple[float, ...],
    probe: str,
    permuted: Permuted | None,
) -> Result:
    def scores(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], where: str) -> Mapping[str, Score]:
        source: Source = "cv" if where == "fitted" else "transfer"
        mask = plan.fitted if where == "fitted" else plan.transfer[where]
        if t.kind == "class":
            return score_classes(truth[mask], predicted[mask], len(t.classes), plan.groups[mask], source=source)
        return score_values(truth[mask], predicted[mask], plan.groups[mask], source=source)

    real = predictions[t.name, "real"]
    constant: npt.NDArray[Any] = np.zeros_like(t.truth)
    for k in range(plan.folds):
        train: npt.NDArray[Any] = t.truth[plan.fitted & (t.fold != k)]
        constant[t.fold == k] = _constant(train, t.kind)
    controls = {name: scores(labels, predictions[t.name, name], "fitted") for name, labels in t.controls.items()}
    controls["majority"] = scores(t.truth, constant, "fitted")
    inside: Any = t.truth[plan.fitted]
    guess: Any = real[plan.fitted]
    if t.kind == "class":
        permuted = permute_classes(inside, guess, len(t.classes), plan.permutations)
    elif permuted is None:
        permuted = permute_values(inside, guess - constant[plan.fitted], plan.permutations)
    return Result(
        target=t.name,
        kind=t.kind,
        probe=probe,
        metric="balanced_accuracy" if t.kind == "class" else "r2",
        truth=t.classes[t.truth] if t.kind == "class" else t.truth,
        predicted=t.classes[real] if t.kind == "class" else real,
        fold=t.fold,
        fitted=plan.fitted,
        strengths=strengths,
        scores=scores(t.truth, real, "fitted"),
        controls=controls,
        transfer={name: scores(t.truth, real, name) for name in plan.transfer},
        permuted=permuted,
    )


def _constant(train: npt.NDArray[Any], kind: str) -> float:
    """The best prediction without activations: the most frequent class code, or the mean."""
    return float(np.bincount(train).argmax() if kind == "class" else train.mean())
