import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from figures.findings.peaks import location_range
from records import resampling
from records.resampling import (
    adjust_max,
    adjust_p,
    needed_of,
    permutation_p,
    select_best,
    share_needed,
    shuffle_over_groups,
    sign_flip_tests,
)


def noise(*shape: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


@pytest.mark.parametrize("n", [6, 9])
def test_p_equals_scipys_exact_one(n: int) -> None:
    values = noise(2, n, mean=0.7, seed=n)
    expected = [
        permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue for row in values
    ]
    np.testing.assert_allclose(sign_flip_tests(values, seed=0).p, expected)


def test_drawn_p_is_near_the_exact_one_and_never_zero() -> None:
    values = np.stack([noise(20, mean=0.3), noise(20, mean=5.0)])
    found = sign_flip_tests(values, seed=0).p
    signs = 1.0 - 2.0 * ((np.arange(2**20)[:, None] >> np.arange(20)) & 1)
    exact = (np.abs(signs @ values[0]) >= abs(values[0].sum()) - 1e-9).mean()
    assert abs(found[0] - exact) < 0.02  # 9,999 draws: three standard errors are 0.015
    assert found[1] == 1 / 10000


def test_sign_flips_in_chunks_give_the_same_p(monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise(7, 30, mean=0.3)
    whole = sign_flip_tests(values, seed=0)
    monkeypatch.setattr(resampling, "_CHUNK", 20_000)  # 2 of 7 cells at a time
    again = sign_flip_tests(values, seed=0)
    np.testing.assert_array_equal([again.p, again.p_max], [whole.p, whole.p_max])


def test_p_max_of_noise_is_small_in_5_percent_of_families_and_single_cells_are_not_adjusted() -> None:
    found = 0
    for seed in range(200):
        shared = noise(1, 16, seed=seed)
        tests = sign_flip_tests(shared + noise(20, 16, seed=1000 + seed), seed=seed, flips=499)
        assert (tests.p_max >= tests.p).all()
        found += bool((tests.p_max < 0.05).any())
    assert 2 <= found <= 20  # 200 families at 5 %: three standard errors are 9
    alone = sign_flip_tests(noise(1, 30, mean=0.4), seed=0)
    assert alone.p_max.tolist() == alone.p.tolist()


def test_p_max_finds_a_planted_cell_among_noise_and_no_other() -> None:
    values = noise(30, 40)
    values[7] += 1.5
    assert np.flatnonzero(sign_flip_tests(values, seed=0).p_max < 0.05).tolist() == [7]


def test_largest_statistics_are_adjusted_step_by_step() -> None:
    null = noise(3, 999)
    adjusted = adjust_max(np.array([9.0, 2.2, 0.0]), null)
    assert adjusted[0] == 1 / 1000
    # the cell above it is out of the way, so the second is compared with the two that are left
    assert adjusted[1] == permutation_p(2.2, null[1:].max(0))
    assert adjusted[2] == permutation_p(0.0, null[2])


def test_best_of_equal_cells_is_corrected_and_a_clear_one_is_not() -> None:
    units = np.eye(30)
    equal = select_best(np.full(30, 0.5), np.full(30, 0.1), units, seed=0)
    assert equal.optimism == pytest.approx(2.04, abs=0.1)  # mean of the largest of 30 normal numbers
    assert equal.shares.max() < 0.06
    assert location_range(equal.shares) == (0, 29)
    clear = select_best(np.where(np.arange(30) == 4, 2.0, 0.5), np.full(30, 0.1), units, seed=0)
    assert clear.shares[4] == 1
    assert location_range(clear.shares) == (4, 4)
    assert abs(clear.optimism) < 0.1
    assert clear.highest == pytest.approx(1.96, abs=0.15)


def test_permutation_p_counts_the_observed_value_once() -> None:
    assert permutation_p(5.0, np.arange(4.0)) == 0.2
    assert permutation_p(3.0, np.arange(4.0)) == 0.4
    assert permutation_p(-1.0, np.arange(4.0)) == 1.0


def test_shuffling_moves_whole_groups_and_keeps_the_label_counts() -> None:
    groups = np.array(["a", "a", "b", "c", "c", "d", "e", "e"] * 1 + ["f"] * 2)
    labels = np.array([0, 0, 1, 2, 2, 3, 4, 4, 5, 5])
    generator = np.random.default_rng(0)
    draws = [labels[shuffle_over_groups(groups, generator=generator)] for _ in range(50)]
    for shuffled in draws:
        assert sorted(shuffled) == sorted(labels)
        assert all(len(set(shuffled[groups == g])) == 1 for g in set(groups))
    assert len({tuple(d) for d in draws}) > 10


@pytest.mark.parametrize("strong", [0, 30])
def test_share_needed_is_where_p_max_passes_5_percent(strong: int) -> None:
    others = noise(40, 25, seed=3)
    others[:strong] += 3.0  # these are stepped down from, whatever the cell
    for mean in (1.0, 1.5):
        cell = noise(25, seed=8) + mean
        rest = cell - cell.mean()
        tests = sign_flip_tests(np.concatenate([others, cell[None]]), seed=0, kept=[40])
        assert tests.p_max[-1] < 0.05
        share = share_needed(tests, 40, lambda share, rest=rest, cell=cell: rest + share * (cell - rest))  # type: ignore[misc]
        for factor, is_named in ((0.99, False), (1.01, True)):
            less = rest + factor * share * (cell - rest)
            found = sign_flip_tests(np.concatenate([others, less[None]]), seed=0)
            assert (found.p_max[-1] < 0.05) == is_named


def test_largest_statistic_of_smaller_cells_is_kept_for_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise(7, 9, mean=0.3, seed=2)
    signs = 1.0 - 2.0 * ((np.arange(2**9)[:, None] >> np.arange(9)) & 1)
    unit = values / np.sqrt((values**2).sum(1, keepdims=True))
    drawn, seen = np.abs(unit @ signs.T), np.abs(unit.sum(1))
    for chunk in (10**6, 3 * 2**9, 1):  # all cells at a time, three, one
        monkeypatch.setattr(resampling, "_CHUNK", chunk)
        found = sign_flip_tests(values, seed=0, kept=range(7))
        for cell in range(7):
            smaller = drawn[seen < seen[cell]]
            np.testing.assert_allclose(found.smaller[cell], smaller.max(0, initial=0.0))
        assert sign_flip_tests(values, seed=0, kept=[2]).smaller.keys() == {2}


@pytest.mark.parametrize("draws", [10, 18, 19, 20, 39, 200, 999])
def test_p_is_below_5_percent_just_above_the_needed_statistic(draws: int) -> None:
    null = noise(draws, seed=draws)
    needed = needed_of(null)
    if draws < 20:
        assert needed == np.inf
        return
    assert permutation_p(needed, null) >= 0.05 > permutation_p(needed + 1e-6, null)


def test_groups_of_unequal_sizes_are_dealt_out_again() -> None:
    groups = np.repeat([0, 1, 2], [1, 2, 3])
    generator = np.random.default_rng(0)
    draws = {tuple(shuffle_over_groups(groups, generator=generator)) for _ in range(50)}
    assert all(sorted(d) == list(range(6)) for d in draws)
    assert len(draws) == 6  # every order of three groups


def test_no_difference_at_all_has_p_one() -> None:
    np.testing.assert_array_equal(sign_flip_tests(np.zeros((2, 5)), seed=0).p, 1.0)
    np.testing.assert_array_equal(sign_flip_tests(np.zeros((2, 50)), seed=0).p, 1.0)


def test_p_is_uniform_without_an_effect() -> None:
    p = sign_flip_tests(noise(600, 30, seed=4), seed=0, flips=999).p
    assert abs((p < 0.05).mean() - 0.05) < 0.03  # three standard errors are 0.027
    assert abs((p < 0.5).mean() - 0.5) < 0.07


def test_adjustment_is_that_of_benjamini_and_hochberg_and_skips_what_is_undefined() -> None:
    p = np.array([0.001, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(adjust_p(p), false_discovery_control(p))
    np.testing.assert_allclose(adjust_p(p), [0.004, 0.16 / 3, 0.16 / 3, 0.5])
    holed = adjust_p(np.array([0.001, np.nan, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(holed[[0, 2, 3, 4]], adjust_p(p))
    assert np.isnan(holed[1])
    assert np.isnan(adjust_p(np.array([np.nan]))).all()


def test_hundreds_of_cells_without_effect_are_not_called_effects() -> None:
    p = sign_flip_tests(noise(300, 40, seed=9), seed=0).p
    assert (p < 0.05).sum() > 3  # what the correction is for
    assert (adjust_p(p) < 0.05).sum() == 0
