"""Permutation tests of ridge regression of numbers, with the whole procedure repeated for every shuffle."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from probes.evaluation.folds import FoldPlan, TargetPlan
from probes.evaluation.jobs import best_strengths
from probes.evaluation.scores import Permuted, standardise
from probes.linear.ridge import RidgeEquations
from probes.linear.solver import Basis
from records.resampling import Array

# Of labels, out-of-fold predictions and the training mean of the fold, each "draw example": a sum over examples. Labels
# have mean 0 and variance 1.
Statistic = Callable[[Tensor, Tensor, Tensor], Tensor]


def gain_in_error(truth: Tensor, predicted: Tensor, constant: Tensor) -> Tensor:
    """By how much the squared error of predictions is smaller than that of the training mean."""
    return ((predicted - constant) * (2 * truth - predicted - constant)).sum(-1)  # a difference of squares


def agreement(truth: Tensor, predicted: Tensor, constant: Tensor) -> Tensor:
    """Sum of products of labels with what predictions add to the training mean: a covariance, whatever their scale."""
    return (truth * (predicted - constant)).sum(-1)


def permute_ridge(
    basis: Basis,
    target: TargetPlan,
    plan: FoldPlan,
    path: Sequence[float],
    statistic: Statistic,
    *,
    others: Float[Tensor, "row rank"] | None = None,
) -> list[Permuted]:
    """The statistic of a number and of its shuffles: of the examples of the basis, and of each other set of rows.

    Each shuffle chooses the penalty of each fold on its own inner folds, as the real labels do; so nothing but their
    order tells real labels from shuffled ones. At the penalties of the real labels the p-values of noise would be 0.68
    on average: labels that seem readable in the inner folds take a weak penalty, and err more in the outer ones.

    Args:
        basis: All examples.
        target: A continuous target.
        plan: Its folds and permutations.
        path: Penalties to choose from, strong to weak.
        statistic: What is compared.
        others: Further sets of rows on the axes of the basis, each as long as the basis, one after the other.
    """
    sets = [basis.rows, *(() if others is None else others.reshape(-1, *basis.rows.shape))]
    if not len(plan.permutations):
        return [Permuted(0.0, np.zeros(0))] * len(sets)
    device = basis.rows.device
    values = target.truth[plan.fitted].astype(np.float64)
    # Neither a statistic nor a penalty depends on the place and scale of the labels, but rounding does.
    values = (values - values.mean()) / values.std()
    labels = np.zeros((1 + len(plan.permutations), len(plan.groups)))
    labels[:, plan.fitted] = np.concatenate([values[None], values[plan.permutations]])
    y = torch.from_numpy(labels).to(device)
    strengths = _choose(basis, target, plan.folds, path, y)
    sums = np.zeros((len(sets), len(y)))
    for k in range(plan.folds):
        test = torch.from_numpy(plan.fitted & (target.fold == k)).to(device)
        train = torch.from_numpy(plan.fitted & (target.fold != k)).to(basis.rows)
        equations = RidgeEquations(basis, y, train)
        coefficients = y.new_empty(len(y), equations.n_coefficients)
        for strength in np.unique(strengths[:, k]).tolist():
            draws = torch.from_numpy(strengths[:, k] == strength).to(device)
            coefficients[draws] = equations.solve(strength, draws)
        predict = equations.predictor(coefficients, int(test.sum()) * len(sets))
        truth, constant = y[:, test], equations.target_mean[:, None]
        for number, rows in enumerate(sets):
            sums[number] += statistic(truth, predict(rows[test]), constant).cpu().numpy()
    return [standardise(float(row[0]), row[1:]) for row in sums]


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
