"""Scores with bootstrap intervals over groups, permutation p-values, and their correction across sites.

Everything is computed from per-group sums, so a thousand resamples are one small matrix product.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats

from probes.evaluation.controls import shuffle_over_groups

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
# Out-of-fold predictions use each pair of examples twice: i predicts j and j predicts i. Under the null the score then
# varies like a quadratic form in the labels, with twice the variance that shuffling against fixed predictions shows.
DEPENDENCE = 2**0.5
INTERVAL = "95% percentile bootstrap over groups"


@dataclass(frozen=True)
class Score:
    """A point estimate with its interval; higher is better.

    Args:
        metric: ``"balanced_accuracy"``, ``"accuracy"`` or ``"r2"``.
        value: The estimate from all ``n`` examples.
        lower: Lower end of the interval.
        upper: Upper end.
        n: Examples scored.
        interval: How the ends were found.
    """

    metric: str
    value: float
    lower: float
    upper: float
    n: int
    interval: str = INTERVAL


@dataclass(frozen=True)
class Resamples:
    """Bootstrap draws of groups, shared by every score on the same examples.

    Args:
        group: Group code of each example, from 0.
        counts: How often each draw took each group; rows are draws.
    """

    group: Codes
    counts: Array


def draw_resamples(groups: npt.ArrayLike, *, n_resamples: int, generator: np.random.Generator) -> Resamples:
    """Draws of as many groups as there are, with replacement."""
    names, code = np.unique(np.asarray(groups), return_inverse=True)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    return Resamples(code.astype(np.int64), counts.astype(np.float64))


def score_classes(truth: Codes, predicted: Codes, n_classes: int, resamples: Resamples) -> Mapping[str, Score]:
    """Balanced accuracy (mean recall over the classes that occur) and accuracy.

    A bootstrap draw without any example of a class averages over the classes it has.
    """
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


def score_values(truth: Array, predicted: Array, resamples: Resamples) -> Mapping[str, Score]:
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

    return {
        "r2": _score(
            "r2", float(measure(table.sum(0, keepdims=True))[0]), measure(resamples.counts @ table), len(truth)
        )
    }


def _score(metric: str, value: float, draws: Array, n: int) -> Score:
    lower, upper = np.nanpercentile(draws, [2.5, 97.5])
    return Score(metric, value, float(lower), float(upper), n)


def draw_permutations(groups: npt.ArrayLike, *, n_permutations: int, generator: np.random.Generator) -> Codes:
    """Rows of indices, each of which shuffles labels over groups; see `shuffle_over_groups`."""
    return np.stack([shuffle_over_groups(groups, generator=generator) for _ in range(n_permutations)])


def permutation_p_classes(truth: Codes, predicted: Codes, n_classes: int, permutations: Codes) -> float:
    """Share of shuffled labels that the same out-of-fold predictions match at least as well, by balanced accuracy.

    The probe is not fitted again: the null hypothesis is that predictions made without an example's label are unrelated
    to it. Deviations of the null are widened by `DEPENDENCE`, for folds share examples. The value is
    ``(1 + hits) / (1 + permutations)``, so never zero.

    Source: Phipson & Smyth, Permutation P-values Should Never Be Zero, 2010, doi 10.2202/1544-6115.1585.
    """
    total = np.bincount(truth, minlength=n_classes)  # a permutation keeps the class counts
    weight = 1 / np.maximum(total, 1) / max(int((total > 0).sum()), 1)
    real = weight[truth][predicted == truth].sum()
    shuffled = truth[permutations]
    null = ((shuffled == predicted) * weight[predicted]).sum(1)
    return _p_value(float(real), null)


def permutation_p_values(truth: Array, predicted: Array, permutations: Codes) -> float:
    """As `permutation_p_classes`, by squared error: the spread is the same for every permutation."""
    real = ((truth - predicted) ** 2).sum()
    null = ((truth[permutations] - predicted) ** 2).sum(1)
    return _p_value(-float(real), -null)


def _p_value(real: float, null: Array) -> float:
    wide = null.mean() + DEPENDENCE * (null - null.mean())
    return float((1 + (wide >= real - 1e-12 * abs(real)).sum()) / (1 + len(null)))


def benjamini_hochberg(p_values: npt.ArrayLike) -> Array:
    """Adjusted p-values of a family of sites; reject where they are below the false discovery rate you accept.

    Source: Benjamini & Hochberg, Controlling the False Discovery Rate, 1995, doi 10.1111/j.2517-6161.1995.tb02031.x.
    """
    adjusted: Array = np.asarray(
        scipy.stats.false_discovery_control(np.asarray(p_values, dtype=np.float64), method="bh")
    )
    return adjusted
