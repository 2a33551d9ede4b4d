"""Intervals of benchmark scores, and of the ratio of two models' scores on the same questions.

A score is a sum of weighted ratios of sums over questions (see ``tasks.benchmarks.layout.scores``). Questions about
one picture are drawn together. Accuracies get the interval of ``records.intervals.share_intervals``. Other scores with
a largest value, such as the mean of three F1, are shares of it and get Wilson's interval, for the number of independent
answers whose share would vary as much as the linearised score does (the delta method). It never leaves the range.
``benchmarks/calibration_of_scores.py`` measures how often it covers the true score.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from records.intervals import (
    Intervals,
    effective_size,
    paired_share_intervals,
    quantile,
    ratio_intervals,
    share_intervals,
    wilson,
)
from tasks.benchmarks.layout.scores import Scores
from tasks.errors import UserError

SHARE = "95% Wilson over pictures"
BOUNDED = "95% Wilson over pictures, linearised"
LINEARISED = "95% t over pictures, linearised"
PAIRED = "95% t over pictures, paired"
NONE = "none"
_Array = npt.NDArray[np.float64]


class Estimate(NamedTuple):
    """A score or a ratio with its interval; NaN where there is none."""

    value: float
    lower: float
    upper: float
    n_groups: int
    interval: str


def score_estimate(scores: Scores) -> Estimate | None:
    """The main score with its interval; None if there is no score.

    Example:
        >>> from tasks.benchmarks.layout.scores import Item
        >>> items = tuple(Item("all", float(i < 8), 1.0, f"picture {i}") for i in range(10))
        >>> found = score_estimate(Scores(items))
        >>> round(found.value, 1), round(found.lower, 1), round(found.upper, 1)
        (80.0, 49.0, 94.3)
    """
    main = scores.main
    if main is None:
        return None
    groups, n = _groups(scores)
    if _is_share(scores):
        above, below = _sums(scores, groups, n)
        lower, upper = share_intervals(above[None], below[None])
        weight = next(iter(scores.weights.values()))
        return Estimate(main, weight * float(lower[0]), weight * float(upper[0]), n, SHARE)
    moved = influence(scores)
    if not scores.bounded:
        return _student(main, moved, LINEARISED)
    lower_end, upper_end = bounded_interval(main, scores.highest, variance_of(moved), units=n, degrees=max(n - 1, 1))
    return Estimate(main, float(lower_end), float(upper_end), n, BOUNDED)


def bounded_interval(
    value: int | float, highest: int | float, variance: int | float, *, units: int, degrees: int | float
) -> Intervals:
    """The interval of a score from 0 to ``highest``, from its variance.

    Args:
        value: The score.
        highest: The largest possible score.
        variance: Of the score; if it is 0, the score varies as the share of ``units`` independent answers would.
        units: Pictures.
        degrees: Of freedom of the variance.

    Example:
        >>> found = bounded_interval(2.0, 100.0, 4.0, units=12, degrees=11)
        >>> round(float(found.lower), 2), round(float(found.upper), 2)
        (0.29, 12.34)
    """
    share = value / highest
    lower, upper = wilson(share, effective_size(share, variance / highest**2, units), degrees=degrees)
    return Intervals(highest * lower, highest * upper)


def retention_estimate(own: Scores, full: Scores) -> Estimate | None:
    """The ratio of two main scores on the same questions, with a paired interval; None if a score is missing.

    Shares of right answers get the interval of ``records.intervals.paired_share_intervals``, means of scores between
    right and wrong Fieller's, other scores a Student interval of the linearised ratio.

    Raises:
        UserError: If the two are not about the same questions.

    Example:
        >>> from tasks.benchmarks.layout.scores import Item
        >>> right = [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]
        >>> own, full = (Scores(tuple(Item("all", r, 1.0, str(i)) for i, r in enumerate(part))) for part in right)
        >>> retention_estimate(own, full).value
        0.75
    """
    first, second = own.main, full.main
    if first is None or second is None:
        return None
    if [(i.stratum, i.group) for i in own.items] != [(i.stratum, i.group) for i in full.items]:
        raise UserError("scores must be about the same questions, got two that differ. Score both with the same files.")
    groups, n = _groups(own)
    if not second:
        return Estimate(np.nan, np.nan, np.nan, n, NONE)
    own_answers, full_answers = right_answers(own), right_answers(full)
    if own_answers is not None and full_answers is not None:
        lower, upper = paired_share_intervals(own_answers[0][None], full_answers[0][None], own_answers[1], ratio=True)
        return Estimate(first / second, lower.item(), upper.item(), n, PAIRED if n > 1 else NONE)
    if _is_share(own) and _is_share(full):
        (mine, _), (theirs, _) = (_sums(scores, groups, n) for scores in (own, full))
        lower, upper = ratio_intervals(mine[None], theirs[None]).within(0.0)
        return Estimate(first / second, lower.item(), upper.item(), n, "95% Fieller over pictures, paired")
    ratio = first / second
    change = (influence(own) - ratio * influence(full)) / second
    return _student(ratio, change, f"{LINEARISED}, paired")


def right_answers(scores: Scores) -> tuple[_Array, _Array] | None:
    """Right answers and questions of each group, if the score is a share of right answers; else None.

    Example:
        >>> from tasks.benchmarks.layout.scores import Item
        >>> right_answers(Scores((Item("all", 1.0, 1.0, "a"), Item("all", 0.0, 1.0, "b"))))
        (array([1., 0.]), array([1., 1.]))
    """
    if not _is_share(scores) or any(item.above not in (0.0, 1.0) for item in scores.items):
        return None
    return _sums(scores, *_groups(scores))


def _groups(scores: Scores) -> tuple[npt.NDArray[np.int64], int]:
    """The number of each item's group, and the number of groups."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(item.group, len(numbers)) for item in scores.items]
    return np.asarray(found, dtype=np.int64), len(numbers)


def _is_share(scores: Scores) -> bool:
    return len(scores.weights) == 1 and all(item.below == 1 and 0 <= item.above <= 1 for item in scores.items)


def _sums(scores: Scores, groups: npt.NDArray[np.int64], n: int) -> tuple[_Array, _Array]:
    above, below = (
        np.bincount(groups, weights=np.asarray(values, dtype=float), minlength=n)
        for values in ([item.above for item in scores.items], [item.below for item in scores.items])
    )
    return above.astype(float), below.astype(float)


def influence(scores: Scores) -> _Array:
    """What each group of questions moves the main score by, to first order; the values sum to zero.

    Example:
        >>> from tasks.benchmarks.layout.scores import Item
        >>> influence(Scores((Item("all", 1.0, 1.0, "a"), Item("all", 0.0, 1.0, "b")))).tolist()
        [25.0, -25.0]
    """
    groups, n = _groups(scores)
    total = np.zeros(n)
    for stratum, weight in scores.weights.items():
        above, below = scores.sums(stratum)
        if below:
            own = [item.above - above / below * item.below if item.stratum == stratum else 0.0 for item in scores.items]
            total += weight / below * np.bincount(groups, weights=np.asarray(own, dtype=float), minlength=n)
    return total


def variance_of(influence: _Array) -> float:
    """The variance of a score from what each group of questions moves it by.

    Example:
        >>> variance_of(np.array([25.0, -25.0]))
        2500.0
    """
    n = len(influence)
    return float(n / max(n - 1, 1) * (influence**2).sum())


def _student(value: float, influence: _Array, name: str) -> Estimate:
    """A Student interval of a score or a ratio that cannot be negative."""
    n = len(influence)
    error = variance_of(influence) ** 0.5
    if n < 2 or error < 1e-12 * max(1.0, abs(value)):
        return Estimate(value, np.nan, np.nan, n, NONE)
    half = float(quantile(n - 1)) * error
    return Estimate(value, max(0.0, value - half), value + half, n, name)
