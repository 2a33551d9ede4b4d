"""Intervals: known values, coverage in small simulations of ``benchmarks.calibration``, and what has no interval."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from benchmarks.calibration import COVERAGE, LEVEL, PAIRS, Line, pairs_trials
from benchmarks.calibration_of_plans import REGIMES, measure
from records.intervals import (
    crossed,
    effective_size,
    mean_intervals,
    paired_share_intervals,
    ratio_intervals,
    share_difference_intervals,
    share_intervals,
    wilson,
)


def noise(*shape: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


def test_a_share_of_single_answers_has_scipys_wilson_interval() -> None:
    right = (np.arange(20) < 17).astype(float)[None]
    expected = binomtest(17, 20).proportion_ci(method="wilson")
    np.testing.assert_allclose(
        np.concatenate(share_intervals(right, np.ones_like(right))), [expected.low, expected.high]
    )


def test_a_mean_of_symmetric_values_has_scipys_t_interval() -> None:
    half = noise(12)
    values = np.concatenate([half, -half]) + 3
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(np.concatenate(mean_intervals(values[None])), [expected.low, expected.high])


@pytest.mark.parametrize("n", PAIRS)
def test_intervals_over_pairs_cover_the_truth(n: int) -> None:
    for what, hits in pairs_trials(n, 1000).items():
        known = hits[~np.isnan(hits)]
        # 1,000 trials of 95 %: three standard errors are 2 points. Few skewed values are the hardest.
        assert np.mean(known) > (0.89 if n < 10 else 0.92), what
        if "3 answers" not in what and "recovered" not in what:
            assert np.mean(known) < 0.985, what


def test_no_interval_has_zero_width() -> None:
    ones = np.ones((1, 8))
    assert share_intervals(ones, ones).lower[0] == pytest.approx(0.676, abs=0.001)
    assert share_intervals(ones - 1, ones).upper[0] == pytest.approx(0.324, abs=0.001)
    for found in (mean_intervals(0.25 * ones), ratio_intervals(0.3 * ones, ones), mean_intervals(ones[:, :1])):
        assert np.isnan(np.concatenate(found)).all()  # nothing is known of how such values vary


def test_a_ratio_whose_denominator_may_be_zero_has_no_interval() -> None:
    above, below = noise(1, 40, seed=1), noise(1, 40, seed=2)
    assert np.isnan(np.concatenate(ratio_intervals(above, below))).all()
    lower, upper = ratio_intervals(above + 5, below + 10)
    assert lower[0] < 0.5 < upper[0]


def test_ends_outside_of_what_a_score_can_be_are_moved_to_the_limit() -> None:
    found = ratio_intervals(
        np.array([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]]), np.array([[7.0, 7.0], [1.0, 2.0], [1.0, 1.0]])
    )
    assert found.lower[0] < 0.0
    assert found.upper[0] > 0.5
    kept = found.within(0.0, 0.5)
    assert (kept.lower[0], kept.upper[0]) == (0.0, 0.5)
    assert np.isnan(kept.lower[2]), "equal ratios have no interval, and a limit is no end"
    assert found.within(0.0).upper[0] == found.upper[0]


def test_units_that_do_not_count_leave_the_interval_alone() -> None:
    above, below = noise(1, 9, mean=2.0), noise(1, 9, mean=4.0, seed=1)
    padded = (np.pad(x, ((0, 0), (0, 30))) for x in (above, below))
    np.testing.assert_allclose(
        np.concatenate(ratio_intervals(*padded)), np.concatenate(ratio_intervals(above, below)), rtol=1e-9
    )
    right, asked = np.array([[1.0, 0.0, 1.0, 1.0]]), np.ones((1, 4))
    padded = (np.pad(x, ((0, 0), (0, 30))) for x in (right, asked))
    np.testing.assert_allclose(np.concatenate(share_intervals(*padded)), np.concatenate(share_intervals(right, asked)))


def test_answers_of_a_unit_that_agree_count_once() -> None:
    right = (np.arange(40) % 4 > 0).astype(float)[None]
    once = np.concatenate(share_intervals(right, np.ones_like(right)))
    thrice = np.concatenate(share_intervals(3 * right, 3 * np.ones_like(right)))
    np.testing.assert_allclose(thrice, once, atol=0.01)  # 40 estimated groups have Student's quantile


def test_wilson_is_wider_with_few_degrees_of_freedom_and_contains_the_share() -> None:
    narrow, wide = wilson(0.9, 30.0), wilson(0.9, 30.0, degrees=2.0)
    assert wide.lower < narrow.lower < 0.9 < narrow.upper < wide.upper <= 1
    assert wilson(0.0, 5.0).lower == 0
    assert effective_size(0.5, 0.25 / 80, 7) == pytest.approx(80)
    assert effective_size(1.0, 0.0, 7) == 7


def test_crossed_means_vary_with_both_seeds_and_scenes() -> None:
    rng = np.random.default_rng(0)
    means, variances = [], []
    for _ in range(400):
        found = crossed(0.3 * rng.normal(size=(4, 1)) + rng.normal(size=(1, 25)) + rng.normal(size=(4, 25)))
        means.append(found.mean)
        variances.append(found.variance)
    expected = 0.3**2 / 4 + 1 / 25 + 1 / 100
    assert np.var(means) == pytest.approx(expected, rel=0.25)  # 400 draws: three standard errors are 0.21
    assert np.mean(variances) == pytest.approx(expected, rel=0.1)
    alone = crossed(rng.normal(size=(1, 25)))
    assert alone.degrees == 24


@pytest.mark.parametrize("regime", REGIMES)
def test_paired_shares_always_have_an_interval_that_covers_the_truth(regime: str) -> None:
    for found in measure(regime, 150):
        if found.what in ("kept", "difference"):
            assert found.trials == 150 and found.share > 0.86, found  # 150 trials: three standard errors are 5 points


def test_few_losses_without_gains_were_missed_by_the_intervals_before() -> None:
    shares = {found.what: found.share for found in measure("accuracy exactly 0.9, exactly 3 % lost, 100 pictures", 400)}
    assert shares["difference, before"] < 0.88 < 0.92 < shares["difference"]
    assert shares["kept, before: none"] > 0.02 and shares["kept: none"] == 0


def test_an_interval_of_paired_shares_is_wald_s_with_two_answers_added() -> None:
    above, below, asked = np.array([[1.0, 0, 1, 1, 0, 1]]), np.array([[1.0, 1, 1, 1, 0, 0]]), np.ones(6)
    lower, upper = paired_share_intervals(above, below, asked, ratio=False)
    change = np.array([0, -1, 0, 0, 0, 1, 1, -1])
    half = ttest_1samp(change, 0).confidence_interval(0.95).high
    assert (lower, upper) == (pytest.approx(-half), pytest.approx(half))
    ends = np.array([*paired_share_intervals(above, above, asked, ratio=True)])
    assert ends[0] < 1 < ends[1], "equal answers are not equal with certainty"
    for one, two, units in ((above[:, :1], below[:, :1], asked[:1]), (above, 0 * below, asked)):
        assert np.isnan(paired_share_intervals(one, two, units, ratio=True)).all()


def test_answers_of_a_unit_that_change_together_count_once_in_a_difference() -> None:
    above, below = (np.random.default_rng(0).random((2, 1, 60)) < 0.8).astype(float)
    once = paired_share_intervals(above, below, np.ones(60), ratio=False)
    thrice = paired_share_intervals(3 * above, 3 * below, np.full(60, 3.0), ratio=False)
    assert np.allclose(once, thrice)


def test_differences_of_small_shares_are_covered() -> None:
    draw = np.random.default_rng(0)
    trials, units, asked = 1500, 40, np.full((1500, 40), 20.0)
    hard = np.exp(0.9 * draw.normal(size=(2 * trials, units)))  # units differ, and are alike in both shares
    rates = 0.03 * hard, 0.005 * hard
    truth = float(np.mean(np.minimum(rates[0], 1) - np.minimum(rates[1], 1)))
    one, two = (draw.binomial(20, np.minimum(rate[:trials], 1)).astype(float) for rate in rates)
    found = share_difference_intervals(one, two, asked, asked)
    assert 0.93 <= float(((found.lower <= truth) & (truth <= found.upper)).mean()) <= 0.98
    plain = mean_intervals((one - two) / 20)
    assert float((found.upper - found.lower).mean()) < 1.2 * float((plain.upper - plain.lower).mean())


def test_the_interval_of_a_difference_does_not_depend_on_how_often_units_are_asked() -> None:
    draw = np.random.default_rng(0)
    one, two = draw.binomial(4, 0.5, (1, 30)).astype(float), draw.binomial(4, 0.3, (1, 30)).astype(float)
    asked = np.full((1, 30), 4.0)
    found = share_difference_intervals(one, two, asked, asked)
    often = draw.integers(1, 5, (1, 30)).astype(float)  # the shares of each unit stay
    again = share_difference_intervals(one * often, two, asked * often, asked)
    np.testing.assert_allclose(found, again)
    assert np.isnan(share_difference_intervals(one[:, :1], two[:, :1], asked[:, :1], asked[:, :1]).lower).all()


@pytest.mark.parametrize("units", [2, 3, 4, 10])
def test_differences_over_few_units_are_covered(units: int) -> None:
    draw = np.random.default_rng(units)
    rates = np.clip(np.array([[0.5], [0.3]])[:, None] + 0.1 * draw.normal(size=(2, 3000, units)), 0, 1)
    one, two = draw.binomial(20, rates).astype(float)
    found = share_difference_intervals(one, two, *np.full((2, 3000, units), 20.0))
    assert float(((found.lower <= 0.2) & (found.upper >= 0.2)).mean()) >= 0.92
    plain = mean_intervals((one - two) / 20)
    assert np.nanmean(found.upper - found.lower) < np.nanmean(plain.upper - plain.lower)


def test_equal_shares_have_an_interval_of_some_width() -> None:
    half = np.repeat([[0.0, 20.0]], 10, 1)
    for one, two, asked in ((half, half, 20.0), (np.full((1, 12), 1.0), np.full((1, 12), 7.0), 10.0)):
        found = share_difference_intervals(one, two, *np.full((2, *one.shape), asked))
        shift = float((one - two).mean() / asked)
        assert found.lower[0] < shift - 0.05 and found.upper[0] > shift + 0.05


@pytest.mark.parametrize(
    ("share", "trials", "aim", "verdict"),
    [
        (0.95, 300, COVERAGE, "ok"),
        (0.995, 300, COVERAGE, "near"),
        (1.0, 300, COVERAGE, "cautious"),  # of 300 trials at 98 %, 0.2 % have no miss
        (1.0, 30, COVERAGE, "near"),
        (0.89, 300, COVERAGE, "near"),
        (0.88, 300, COVERAGE, "misses"),
        (0.01, 600, LEVEL, "cautious"),
        (0.09, 600, LEVEL, "misses"),
        (0.0, 600, (0.0, LEVEL[1]), "ok"),
    ],
)
def test_the_verdict_of_a_simulation_allows_two_standard_errors_at_the_end_of_the_aim(
    share: float, trials: int, aim: tuple[float, float], verdict: str
) -> None:
    assert Line("", "", share, trials, aim).verdict == verdict
