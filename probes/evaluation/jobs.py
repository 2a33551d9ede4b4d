"""Fit the probes of a cross-validation in batches, and predict every example with each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from sklearn.base import clone
from torch import Tensor

from probes.evaluation.class_rule import decide_class
from probes.evaluation.folds import Mask, TargetPlan
from probes.linear.estimators import LogisticProbe, RidgeClassifierProbe, RidgeProbe
from probes.linear.mlp import MLPProbe
from probes.linear.registry import ESTIMATORS, fit_probe
from probes.linear.ridge import solve_ridge
from probes.linear.solver import Basis, LogisticFit, solve_logistic
from records.resampling import Array, Codes

# Rows of coefficients times examples in a batch. About ten copies of this many floats are held (2.4 GB in float32).
BATCH = 60_000_000
Output = npt.NDArray[np.generic]
_OURS = tuple(estimator for by_kind in ESTIMATORS.values() for estimator in by_kind.values())  # they take tensors


@dataclass(frozen=True)
class Job:
    """One probe to fit."""

    target: TargetPlan
    """The target."""
    labels_of: str
    """``"real"`` or the name of a control."""
    labels: Output
    """Class codes or values, one per example."""
    train: Mask
    """True for examples to fit on."""
    fold: int
    """The outer fold to predict, or the number of the inner split."""


def fit_logistic(
    basis: Basis,
    jobs: Sequence[Job],
    strengths: Sequence[Sequence[float]],
    tol: float,
    *,
    others: Tensor | None = None,
) -> list[list[Output]]:
    """Predicted class codes for every example: for each strength a list over jobs.

    All jobs have the same number of strengths, strong to weak; each fit starts from the solution before. ``others`` are
    further rows on the axes of the basis, which are predicted too, after the examples.
    """
    outputs: list[list[Output]] = [[] for _ in strengths[0]]
    rows = basis.rows if others is None else torch.cat([basis.rows, others])
    for part in _chunks(jobs, len(basis.rows)):
        batch = [jobs[i] for i in part]
        present = [np.unique(job.labels[job.train]) for job in batch]
        # A class without training examples cannot be fitted (its intercept diverges); it is never predicted.
        solvable = [i for i, classes in enumerate(present) if len(classes) > 1]
        fit: LogisticFit | None = None
        if solvable:
            labels = torch.from_numpy(np.stack([_recode(batch[i].labels, present[i]) for i in solvable]))
            weights = torch.from_numpy(np.stack([batch[i].train for i in solvable])).to(basis.rows.dtype)
            labels, weights = labels.to(basis.rows.device), weights.to(basis.rows.device)
            sizes = [len(present[i]) for i in solvable]
        for s in range(len(outputs)):
            predicted: list[Output] = [np.full(len(rows), classes[0], dtype=np.int64) for classes in present]
            if solvable:
                level = torch.tensor([strengths[part[i]][s] for i in solvable], device=basis.rows.device)
                fit = solve_logistic(basis, labels, weights, sizes, level, start=fit, tol=tol)
                z = fit.weight @ rows.T + fit.bias[:, None]
                for place, i in enumerate(solvable):
                    logits = z[fit.rows[place]].cpu().numpy()
                    if len(logits) == 1:  # of the second of two classes
                        logits = np.concatenate([np.zeros_like(logits), logits])
                    counts = np.unique(batch[i].labels[batch[i].train], return_counts=True)[1]
                    predicted[i] = present[i][decide_class(logits, counts, are_logits=True)]
            outputs[s].extend(predicted)
    return outputs


def _chunks(jobs: Sequence[Job], n: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    room = BATCH
    for i, job in enumerate(jobs):
        cost = len(job.target.classes) * n
        if parts[-1] and cost > room:
            parts.append([])
            room = BATCH
        parts[-1].append(i)
        room -= cost
    return parts


def _recode(labels: Output, classes: Output) -> Codes:
    """Codes within ``classes``; other labels, which are not fitted, get a valid code too."""
    return np.minimum(np.searchsorted(classes, labels), len(classes) - 1).astype(np.int64)


def fit_ridge(
    basis: Basis,
    jobs: Sequence[Job],
    strengths: Sequence[Sequence[float]],
    tol: float,
    *,
    others: Tensor | None = None,
) -> list[list[Output]]:
    """Like `fit_logistic`, by ridge regression of values or class indicators.

    Jobs with the same training set share one Gram matrix.
    """
    outputs: list[list[Output]] = [[np.empty(0)] * len(jobs) for _ in strengths[0]]
    shared: dict[bytes, list[int]] = {}
    for i, job in enumerate(jobs):
        shared.setdefault(job.train.tobytes(), []).append(i)
    rows = (basis.rows if others is None else torch.cat([basis.rows, others])).to(torch.float64)
    for members in shared.values():
        y = [_indicators(jobs[i]) for i in members]
        ends = np.cumsum([len(block) for block in y])
        levels = sorted({level for i in members for level in strengths[i]})
        stacked = torch.from_numpy(np.concatenate(y)).to(rows.device)
        weights = torch.from_numpy(jobs[members[0]].train).to(rows)
        fit = solve_ridge(basis, stacked, weights, levels)
        z = {level: w @ rows.T + b[:, None] for level, w, b in zip(levels, fit.weight, fit.bias, strict=True)}
        for i, end, block in zip(members, ends, y, strict=True):
            for s, level in enumerate(strengths[i]):
                mine = z[level][end - len(block) : end].cpu().numpy()
                outputs[s][i] = mine[0]
                if jobs[i].target.kind == "class":  # a class without examples has an output of 0
                    outputs[s][i] = decide_class(mine, block[:, jobs[i].train].sum(1).astype(np.int64))
    return outputs


def best_strengths(merit: Float[Array, "*fit strength"]) -> Int[Codes, "*fit"]:
    """Places of the best strengths by their scores; where scores are equal up to rounding, of the stronger penalty."""
    best = merit.max(-1, keepdims=True)
    return np.asarray(np.argmax(merit >= best - 1e-12 * np.abs(best), -1))


def _indicators(job: Job) -> npt.NDArray[np.float64]:
    if job.target.kind == "continuous":
        return job.labels[None].astype(np.float64)
    indicators: npt.NDArray[np.float64] = (job.labels == np.arange(len(job.target.classes))[:, None]).astype(np.float64)
    return indicators


# Estimators whose probes are fitted together, at several strengths. All others are fitted one by one.
BATCHED: dict[type[Any], Callable[..., list[list[Output]]]] = {
    LogisticProbe: fit_logistic,
    RidgeClassifierProbe: fit_ridge,
    RidgeProbe: fit_ridge,
}


def fit_estimator(x: Tensor, jobs: Sequence[Job], estimator: Any, groups: Codes) -> list[Output]:
    """Predictions for every example by a clone of ``estimator`` for each job."""
    outputs = []
    ours = isinstance(estimator, _OURS)
    data = x if ours else x.cpu().numpy()
    for job in jobs:
        train, labels = torch.from_numpy(job.train).to(x.device) if ours else job.train, job.labels[job.train]
        if job.target.kind == "class" and len(np.unique(labels)) == 1:
            outputs.append(np.full(len(x), labels[0]))
            continue
        probe = fit_probe(clone(estimator), data[train], labels, groups[job.train])
        if isinstance(probe, MLPProbe):
            counts = np.unique(labels, return_counts=True)[1]
            outputs.append(probe.classes_[decide_class(probe.predict_proba(data).T, counts)])
        else:
            outputs.append(np.asarray(probe.predict(data)))
    return outputs
