"""Intervals of what is named hold among what is named, and are the usual ones far from what is needed."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from records.intervals import quantile, wilson
from records.named import named_interval, named_share
from tests.records.test_resampling import noise


@pytest.mark.parametrize(("degrees", "needed"), [(4, 3.0), (5, 4.0), (9, 5.0), (9, 8.0), (30, 3.0)])
def test_ends_of_a_named_interval_grow_with_what_is_seen_also_with_few_degrees(degrees: int, needed: float) -> None:
    ends = np.array([named_interval(needed * factor, needed, degrees) for factor in np.linspace(1.0, 1.3, 31)])
    falls = -np.diff(ends[:, [0, 2]], axis=0)
    assert falls.max() < 0.2  # where a second group of means stops being possible, it is cut
    assert degrees > 10 or (np.diff(ends[:, 2]) < 1).all(), "a possible mean was missed"
    assert (ends[:, 0] <= ends[:, 1]).all() and (ends[:, 1] <= ends[:, 2]).all()


@pytest.mark.parametrize(
    ("seen", "needed", "degrees"), [(np.inf, 3.0, 5), (np.nan, 3.0, 5), (3.0, 3.5, 5), (3.0, 2.0, 0)]
)
def test_a_named_interval_of_impossible_numbers_is_refused(seen: float, needed: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="seen must be finite"):
        named_interval(seen, needed, degrees)


@pytest.mark.parametrize(("seen", "needed"), [(3.05, 3.0), (3.6, 3.0), (6.0, 3.0), (2.5, 0.0)])
def test_interval_of_a_named_mean_with_many_values_is_that_of_the_truncated_normal(seen: float, needed: float) -> None:
    for mean, share in zip(named_interval(seen, needed, 10**7), (0.025, 0.5, 0.975), strict=True):
        above = norm.sf(seen - mean) / (norm.sf(needed - mean) + norm.cdf(-needed - mean))
        assert above == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("mean", [0.0, 0.3, 0.6])
def test_interval_of_a_named_mean_covers_it_where_the_usual_one_does_not(mean: float) -> None:
    values = noise(40_000, 8, mean=mean, seed=5)
    error = values.std(1, ddof=1) / 8**0.5
    t = values.mean(1) / error
    named = np.flatnonzero(np.abs(t) > 3.5)[:150]
    truth = mean / error[named] * np.sign(t[named])
    ends = np.array([named_interval(float(seen), 3.5, 7) for seen in np.abs(t[named])])
    covers = ((ends[:, 0] <= truth) & (truth <= ends[:, 2])).mean()
    assert covers >= 0.89  # 150 at 95 %: three standard errors are 5 %
    assert (np.abs(np.abs(t[named]) - truth) <= quantile(7)).mean() < 0.9
    assert (np.diff(ends, axis=1) > 0).all()


def test_interval_of_a_mean_far_above_what_is_needed_is_the_usual_one() -> None:
    for degrees in (3, 9, 200):
        usual = 30.0 + quantile(degrees) * np.array([-1, 0, 1])
        np.testing.assert_allclose(named_interval(30.0, 2.0, degrees), usual, rtol=1e-2)


@pytest.mark.parametrize("seen", [6e5, 1e9, 1e16])
def test_a_mean_that_hardly_varies_has_the_usual_interval(seen: float) -> None:
    for degrees, needed in ((26, seen / 1000), (399, 3.0), (399, seen / 2), (2000, seen * 0.99), (5, seen)):
        found = named_interval(seen, needed, degrees)
        assert found.lower <= found.middle <= found.upper
        np.testing.assert_allclose(found.upper - seen, quantile(degrees), rtol=1e-2, atol=seen * 1e-15)


@pytest.mark.parametrize("degrees", [1, 2, 5, 26, 399])
@pytest.mark.parametrize("seen", [3.0, 3e2, 3e3, 9e3])
def test_ends_of_a_named_interval_are_in_order_for_any_mean(seen: float, degrees: int) -> None:
    for share in (0.02, 0.5, 0.9, 1.0):
        found = named_interval(seen, share * seen, degrees)
        assert found.lower < found.upper and found.lower <= found.middle <= found.upper


@pytest.mark.parametrize(("count", "needed", "size"), [(0, 1, 10), (11, 1, 10), (3, 4, 10), (3, 0, 10)])
def test_a_named_share_of_impossible_counts_is_refused(count: int, needed: int, size: int) -> None:
    with pytest.raises(ValueError, match="count must be from needed to size"):
        named_share(count, needed, size)


def test_ends_of_a_named_share_are_where_the_probability_of_what_is_named_says() -> None:
    grid = np.linspace(1e-4, 1 - 1e-4, 20_001)
    for count, needed, size in ((8, 7, 10), (30, 12, 40), (5, 5, 6), (9, 9, 9)):
        tail = (binom.sf(count - 1, size, grid) + binom.sf(count, size, grid)) / 2 / binom.sf(needed - 1, size, grid)
        inside = grid[(tail >= 0.025) & (tail <= 0.975)]
        found = named_share(count, needed, size)
        np.testing.assert_allclose([found.lower, found.upper], [inside[0], inside[-1]], atol=3e-4)


@pytest.mark.parametrize("truth", [0.3, 0.5, 0.7])
def test_interval_of_a_named_share_covers_it_where_wilsons_does_not(truth: float) -> None:
    size, needed = 12, 9
    counts = np.arange(needed, size + 1)
    weights = binom.pmf(counts, size, truth) / binom.sf(needed - 1, size, truth)
    ends = [named_share(int(count), needed, size) for count in counts]
    assert all(found.lower <= found.middle <= found.upper for found in ends)
    assert weights[[found.lower <= truth <= found.upper for found in ends]].sum() > 0.9
    usual = [wilson(count / size, float(size)) for count in counts]
    covered = weights[[bool(found.lower <= truth <= found.upper) for found in usual]].sum()
    assert (covered < 0.8) == (truth < 0.6)  # at 0.7, luck is hardly needed for 9 of 12
    assert named_share(11, 1, 12).lower == pytest.approx(0.65, abs=0.02)
    assert named_share(400, 400, 1000).lower == 0.0
