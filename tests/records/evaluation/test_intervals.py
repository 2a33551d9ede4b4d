"""Intervals of benchmark scores against the jackknife and the intervals of shares."""

from collections.abc import Callable

import numpy as np
import pytest

from records.evaluation.intervals import LINEARISED, SHARE, retention_estimate, score_estimate
from records.intervals import quantile, share_intervals
from tasks.benchmarks.layout.scores import Item, Scores
from tasks.errors import UserError

Made = Callable[[float], Scores]


def pope(skill: float, seed: int = 0) -> Scores:
    """Answers to three categories of questions about 60 pictures, right with probability ``skill``."""
    rng = np.random.default_rng(seed)
    items = []
    for picture in range(60):
        for category in ("adversarial", "random", "popular"):
            for wanted in (1.0, 0.0):
                said = wanted if rng.random() < skill else 1 - wanted
                items.append(Item(category, 2 * said * wanted, said + wanted, f"picture {picture}"))
    return Scores(tuple(items), dict.fromkeys(("adversarial", "random", "popular"), 100 / 3))


def without(scores: Scores, group: str) -> Scores:
    """The scores without one picture."""
    return Scores(tuple(item for item in scores.items if item.group != group), scores.weights)


def jackknife(values: list[float]) -> float:
    """The standard error of an estimate from its values without each of n units."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((np.array(values) - np.mean(values)) ** 2).sum()))


def test_the_interval_of_a_mean_of_f1_is_that_of_the_jackknife() -> None:
    scores = pope(0.8)
    found = score_estimate(scores)
    assert found is not None and found.interval == LINEARISED and found.n_groups == 60
    error = jackknife([without(scores, f"picture {i}").main or 0.0 for i in range(60)])
    # Both are first-order; they differ by terms of order 1/n, here about 2 %.
    assert (found.upper - found.lower) / 2 == pytest.approx(float(quantile(59)) * error, rel=0.03)
    assert (found.upper + found.lower) / 2 == pytest.approx(scores.main)


def test_retention_of_a_mean_of_f1_is_paired() -> None:
    own, full = pope(0.7, seed=1), pope(0.8)
    found = retention_estimate(own, full)
    assert found is not None and found.value == pytest.approx((own.main or 0) / (full.main or 1))
    ratios = []
    for i in range(60):
        left = [without(scores, f"picture {i}").main or 0.0 for scores in (own, full)]
        ratios.append(left[0] / left[1])
    assert (found.upper - found.lower) / 2 == pytest.approx(float(quantile(59)) * jackknife(ratios), rel=0.03)
    same = retention_estimate(full, full)
    assert same is not None and same.value == 1.0 and np.isnan(same.lower), "no interval where nothing varies"


def test_the_interval_of_an_accuracy_is_that_of_shares_over_pictures() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((30, 4)) < 0.7
    items = tuple(Item("all", float(ok), 1.0, f"picture {i}") for i, row in enumerate(right) for ok in row)
    found = score_estimate(Scores(items))
    lower, upper = share_intervals(right.sum(1)[None].astype(float), np.full((1, 30), 4.0))
    assert found is not None and found.interval == SHARE
    assert (found.lower, found.upper) == (pytest.approx(100 * lower[0]), pytest.approx(100 * upper[0]))


def test_scores_on_other_questions_are_not_compared() -> None:
    assert score_estimate(Scores()) is None
    assert retention_estimate(Scores(), pope(0.8)) is None
    with pytest.raises(UserError, match="scores must be about the same questions"):
        retention_estimate(without(pope(0.8), "picture 1"), pope(0.8))
