"""Ridge regression of numbers, fitted again to shuffled labels with the whole procedure of the real ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.evaluation.folds import FoldPlan, TargetPlan
from probes.evaluation.jobs import best_strengths
from probes.linear.ridge import RidgeEquations
from probes.linear.solver import Basis
from records.resampling import Array


class ShuffledFits(NamedTuple):
    """Shuffled labels of the fitted examples, and what probes predict that were fitted to them."""

    truth: Float[Array, "draw example"]
    """The shuffled labels."""
    constant: Float[Array, "draw example"]
    """The mean of the training examples of the example's fold."""
    predicted: Float[Array, "set draw example"]
    """Out-of-fold predictions: of the examples of the basis, and of each other set of rows."""


def fit_shuffled(
    basis: Basis,
    target: TargetPlan,
    plan: FoldPlan,
    path: Sequence[float],
    *,
    others: Float[Tensor, "row rank"] | None = None,
) -> ShuffledFits:
    """Fits of the labels of a number, shuffled by each permutation of the plan.

    Each shuffle chooses the penalty of each fold on its own inner folds, as the real labels do. At the penalties of the
    real labels the p-values of noise are 0.68 on average and not 0.5: labels that seem readable in the inner folds take
    a weak penalty, and err more in the outer ones.

    Args:
        basis: All examples.
        target: A continuous target.
        plan: Its folds and permutations.
        path: Penalties to choose from, strong to weak.
        others: Further rows on the axes of the basis, one or more times those of the examples, which are predicted too.
    """
    fitted = torch.from_numpy(plan.fitted).to(basis.rows.device)
    rows = torch.stack([basis.rows, *(() if others is None else others.reshape(-1, *basis.rows.shape))])
    truth = target.truth[plan.fitted].astype(np.float64)[plan.permutations]
    labels = np.zeros((len(truth), len(plan.groups)))
    labels[:, plan.fitted] = truth
    y = torch.from_numpy(labels).to(rows.device)
    strengths = _choose(basis, target, plan.folds, path, y)
    constant = np.zeros_like(labels)
    predicted = np.zeros((len(rows), *labels.shape))
    for k in range(plan.folds):
        mine = target.fold == k
        test = torch.from_numpy(mine).to(rows.device)
        equations = RidgeEquations(basis, y, (fitted & ~test).to(basis.rows))
        constant[:, mine] = equations.target_mean[:, None].cpu().numpy()
        projected = equations.project(rows[:, test].flatten(0, 1))
        for strength in np.unique(strengths[:, k]).tolist():
            draws = np.flatnonzero(strengths[:, k] == strength)
            chosen = torch.from_numpy(draws).to(rows.device)
            output = equations.solve(strength, chosen) @ projected + equations.target_mean[chosen, None]
            by_set = output.unflatten(1, (len(rows), -1)).transpose(0, 1)
            predicted[np.ix_(np.arange(len(rows)), draws, np.flatnonzero(mine))] = by_set.cpu().numpy()
    return ShuffledFits(truth, constant[:, plan.fitted], predicted[..., plan.fitted])


def _choose(
    basis: Basis, target: TargetPlan, folds: int, path: Sequence[float], y: Float[Tensor, "draw example"]
) -> Float[Array, "draw fold"]:
    """The penalty of each fold for each draw, as `choose_strengths` finds that of the real labels."""
    merit = np.zeros((len(y), folds, len(path)))
    for split in target.inner if len(path) > 1 else ():
        equations = RidgeEquations(basis, y, torch.from_numpy(split.train).to(basis.rows))
        read = []
        for k, judge in split.judges:
            mine = torch.from_numpy(judge).to(y.device)
            read.append((k, equations.project(basis.rows[mine]), y[:, mine] - equations.target_mean[:, None]))
        for s, strength in enumerate(path):
            coefficients = equations.solve(strength)
            for k, projected, truth in read:
                merit[:, k, s] -= (coefficients @ projected - truth).square().mean(1).cpu().numpy()
    judged = [k for split in target.inner for k, _ in split.judges] if len(path) > 1 else []
    places = np.where(np.isin(np.arange(folds), judged), best_strengths(merit), len(path) // 2)
    return np.asarray(path, dtype=np.float64)[places]
