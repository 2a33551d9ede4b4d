"""Intervals of benchmark scores against the jackknife and the intervals of shares."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from benchmarks.calibration_of_scores import measure
from records.evaluation.intervals import BOUNDED, LINEARISED, SHARE, retention_estimate, score_estimate
from records.intervals import quantile, share_intervals, wilson
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.scores import Item, Scores
from tasks.benchmarks.llava_wild import Reference
from tasks.benchmarks.llava_wild import score as score_wild
from tasks.benchmarks.mme import score as score_mme
from tasks.benchmarks.pope import score as score_pope
from tasks.errors import UserError
from tasks.example import Picture

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
    assert found is not None and found.interval == BOUNDED and found.n_groups == 60
    error = jackknife([without(scores, f"picture {i}").main or 0.0 for i in range(60)]) / 100
    share = (scores.main or 0.0) / 100
    lower, upper = wilson(share, share * (1 - share) / error**2, degrees=59)
    # Both variances are first-order; they differ by terms of order 1/n, here about 2 %.
    assert found.upper - found.lower == pytest.approx(100 * (upper - lower), rel=0.03)
    assert (found.upper + found.lower) / 2 == pytest.approx(50 * (upper + lower), rel=0.001)


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


def test_a_model_that_says_no_to_nearly_all_has_an_interval_inside_the_range() -> None:
    # One of four pictures has one right yes in one category: the F1 are 2 x 1 / (1 + 9), 0 and 0.
    asked, said = [], []
    for picture in range(4):
        for category in ("adversarial", "random", "popular"):
            for wanted in ("yes", "yes", "no", "no") if picture else ("yes", "yes", "yes", "no", "no", "no"):
                text = f"{picture} {len(asked)}?"
                asked.append(Question(len(asked), text, category=category, label=wanted, row={}))
                said.append(
                    "Yes" if (picture, category, wanted) == (0, "random", "yes") and "Yes" not in said else "No"
                )
    asked = [Question(q.id, q.text, _picture(q.text[0]), q.category, q.label) for q in asked]
    found = score_estimate(score_pope(asked, said))
    assert found is not None and found.value == pytest.approx(20 / 3) and found.n_groups == 4
    assert 0 < found.lower < found.value < found.upper < 100


def _picture(name: str) -> Picture:
    return Picture(f"picture {name}", lambda: Image.new("RGB", (4, 4)))


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_an_f1_of_0_and_of_100_have_an_interval_with_one_end_at_the_score(skill: float) -> None:
    found = score_estimate(pope(skill))
    assert found is not None and found.value == 100 * skill and found.n_groups == 60
    assert (found.lower, found.upper)[int(skill)] == pytest.approx(100 * skill)
    assert 0 < found.upper - found.lower < 12, "60 pictures leave room for about 6 % of others"


@pytest.mark.parametrize("seed", range(200))
def test_no_interval_of_an_f1_leaves_the_range_or_misses_the_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    strata, rates = int(rng.integers(1, 4)), rng.random(2) ** rng.integers(0, 5)
    items = []
    for _ in range(rng.integers(1, 31)):
        said, wanted = rng.random(2) < rates
        name, group = f"category {rng.integers(strata)}", f"picture {rng.integers(4)}"
        items.append(Item(name, 2.0 * (said and wanted), float(said) + float(wanted), group))
    scores = Scores(tuple(items), {f"category {c}": 100 / strata for c in range(strata)})
    found = score_estimate(scores)
    assert found is not None
    assert 0 <= found.lower <= found.value + 1e-9 and found.value - 1e-9 <= found.upper <= 100 + 1e-9
    assert found.upper > found.lower


@pytest.mark.parametrize("regime", ["no to nearly all", "good"])
def test_the_interval_of_a_mean_of_f1_covers_the_true_score_also_with_few_pictures(regime: str) -> None:
    covers, _, _, outside = measure(f"mean of three F1, {regime}", 8, 150)
    # The record has 1,000 trials; three standard errors of 150 are 5 points.
    assert covers.trials == 150 and covers.share > 0.90
    assert outside.share > 0.05, "the Student interval left the range"


def test_points_of_mme_stay_within_those_of_its_categories() -> None:
    asked, said = [], []
    for category in ("existence", "count"):
        for picture in range(3):
            for label in ("yes", "no"):
                asked.append(Question(f"{category}/{picture}.png", f"{label}?", category=category, label=label))
                said.append(label if (category, picture) != ("count", 2) else "yes")
    scores = score_mme(asked, said)
    found = score_estimate(scores)
    assert found is not None and scores.highest == 400
    assert found.value == pytest.approx(200 + 100 * (5 / 6 + 4 / 6)) and found.upper <= 400


def test_grades_relative_to_a_reference_may_exceed_100_but_not_fall_below_0() -> None:
    class Judge:
        def ask(self, prompt: str) -> str:
            return "1 10" if "A lake." in prompt else "10 1"

    reference = Reference("A hill.", "A hill.", "r")
    asked = [Question(i, "What?", category="conv", label=reference) for i in range(3)]
    scores = score_wild(asked, ["A lake.", "A hut.", "A hut."], Judge())
    found = score_estimate(scores)
    assert found is not None and found.interval == LINEARISED and not scores.bounded
    assert found.lower == 0.0 and found.upper > 100


def test_a_retention_cannot_be_negative() -> None:
    right = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]
    own, full = (Scores(tuple(Item("all", r, 1.0, str(i)) for i, r in enumerate(part))) for part in right)
    found = retention_estimate(own, full)
    assert found is not None and found.value == 0.25 and found.lower == 0.0
    said = [True, False, False], [True, True, True]
    own, full = (Scores(tuple(Item("all", 2.0 * r, r + 1.0, str(i)) for i, r in enumerate(part))) for part in said)
    found = retention_estimate(own, full)
    assert found is not None and found.interval.startswith(LINEARISED)
    assert (found.lower, found.value) == (0.0, 0.5)


def test_scores_on_other_questions_are_not_compared() -> None:
    assert score_estimate(Scores()) is None
    assert retention_estimate(Scores(), pope(0.8)) is None
    with pytest.raises(UserError, match="scores must be about the same questions"):
        retention_estimate(without(pope(0.8), "picture 1"), pope(0.8))
