"""Scores with bootstrap intervals over groups, and permutation p-values.

Scores are computed from sums over groups, so a thousand resamples are one small matrix product.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from records.resampling import Array, Codes, GroupDraws, percentile_interval, permutation_p

# Out-of-fold predictions use each pair of examples twice: i predicts j and j predicts i. Under the null hypothesis the
# score has twice the variance that shuffling against fixed predictions shows.
DEPENDENCE = 2**0.5
INTERVAL = "95% percentile bootstrap over groups"


@dataclass(frozen=True)
class Score:
    """A point estimate with its interval; higher is better."""

    metric: str
    """``"balanced_accuracy"``, ``"accuracy"`` or ``"r2"``."""
    value: float
    """The estimate from all ``n`` examples."""
    lower: float
    """Lower end of the interval."""
    upper: float
    """Upper end of the interval."""
    n: int
    """Number of examples."""
    interval: str = INTERVAL
    """Name of the interval."""


def score_classes(truth: Codes, predicted: Codes, n_classes: int, resamples: GroupDraws) -> Mapping[str, Score]:
    """Balanced accuracy (mean recall over the classes that occur, also in each bootstrap draw) and accuracy."""
    n_groups = resamples.counts.shape[1]
    cell = resamples.group * n_classes + truth
    total = np.bincount(cell, minlength=n_groups * n_classes).reshape(n_groups, n_classes).astype(np.float64)
    right = np.bincount(cell, truth == predicted, n_groups * n_classes).reshape(n_groups, n_classes)

    def measure(right: Array, total: Array) -> dict[str, Array]:
        recall = np.where(total > 0, right / np.maximum(total, 1), 0.0)
        balanced = recall.sum(-1) / np.maximum((total > 0).sum(-1), 1)
        return {"balanced_accuracy": balanced, "accuracy": right.sum(-1) / np.maximum(total.sum(-1), 1)}

    point = measure(right.sum(0, keepdims=True), total.sum(0, keepdims=True))
    draws = measure(resamples.counts @ right, resamples.counts @ total)
    return {m: _score(m, float(point[m][0]), draws[m], len(truth)) for m in point}


def score_values(truth: Array, predicted: Array, resamples: GroupDraws) -> Mapping[str, Score]:
    """R2: one minus the squared error over the spread around the mean of the same examples."""
    centred = truth - truth.mean()  # shifts nothing, and keeps the sums of squares accurate
    sums = np.stack([np.ones_like(truth), centred, centred**2, (truth - predicted) ** 2], 1)
    table = np.zeros((resamples.counts.shape[1], 4))
    np.add.at(table, resamples.group, sums)

    def measure(table: Array) -> Array:
        n, first, second, error = np.moveaxis(table, -1, 0)
        spread = second - first**2 / n
        ratio: Array = 1 - error / np.where(spread > 0, spread, np.nan)
        return ratio

    point = float(measure(table.sum(0, keepdims=True))[0])
    return {"r2": _score("r2", point, measure(resamples.counts @ table), len(truth))}


def _score(metric: str, value: float, draws: Array, n: int) -> Score:
    lower, upper = percentile_interval(draws, tail=0.025)
    return Score(metric, value, float(lower), float(upper), n)


def permutation_p_classes(truth: Codes, predicted: Codes, n_classes: int, permutations: Codes) -> float:
    """Share of shuffled labels that the same out-of-fold predictions match at least as well, by balanced accuracy.

    The probe is not fitted again: under the null hypothesis, predictions made without an example's label are unrelated
    to it. Deviations of the null are widened by `DEPENDENCE`.
    """
    total = np.bincount(truth, minlength=n_classes)  # a permutation keeps the class counts
    weight = 1 / np.maximum(total, 1) / max(int((total > 0).sum()), 1)
    real = weight[truth][predicted == truth].sum()
    shuffled = truth[permutations]
    null = ((shuffled == predicted) * weight[predicted]).sum(1)
    return _p_value(float(real), null)


def permutation_p_continuous(truth: Array, predicted: Array, permutations: Codes) -> float:
    """As `permutation_p_classes`, by squared error."""
    real = ((truth - predicted) ** 2).sum()
    null = ((truth[permutations] - predicted) ** 2).sum(1)
    return _p_value(-float(real), -null)


def _p_value(observed: float, null: Array) -> float:
    return permutation_p(observed, null.mean() + DEPENDENCE * (null - null.mean()))
