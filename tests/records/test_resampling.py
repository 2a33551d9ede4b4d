import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from records import resampling
from records.resampling import (
    adjust_p,
    bootstrap_means,
    bootstrap_ratios,
    draw_groups,
    permutation_p,
    shuffle_over_groups,
    sign_flip_p,
)


def noise(*shape: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, shape)


def test_interval_of_a_mean_is_the_normal_one_for_many_examples() -> None:
    values = noise(3, 400, mean=2.0)
    found = bootstrap_means(values, seed=0)
    error = values.std(1) / 20
    np.testing.assert_allclose(found.lower, values.mean(1) - 1.96 * error, atol=0.2 * error.max())
    np.testing.assert_allclose(found.upper, values.mean(1) + 1.96 * error, atol=0.2 * error.max())
    wider = bootstrap_means(values, seed=0, tail=0.005)
    assert (wider.lower < found.lower).all() and (wider.upper > found.upper).all()


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    values = noise(400, 60, mean=1.0, seed=3)
    found = bootstrap_means(values, seed=1, draws=1000)
    covered = ((found.lower <= 1.0) & (found.upper >= 1.0)).mean()
    assert 0.90 < covered < 0.98  # 400 trials of 0.95: three standard errors are 0.033


def test_equal_values_have_an_interval_of_no_width_and_equal_cells_equal_intervals() -> None:
    found = bootstrap_means(np.full((2, 9), 0.25), seed=0)
    np.testing.assert_allclose(np.stack(found), 0.25)
    values = noise(1, 30).repeat(2, 0)
    twice = bootstrap_means(values, seed=5)
    assert twice.lower[0] == twice.lower[1]
    assert twice.lower[0] != bootstrap_means(values, seed=6).lower[0]


def test_ratio_of_proportional_parts_is_certain_however_they_vary() -> None:
    parts = noise(1, 50) ** 2
    found = bootstrap_ratios(0.3 * parts, parts, seed=0)
    np.testing.assert_allclose(np.concatenate(found), 0.3)


def test_examples_that_do_not_count_leave_the_ratio_alone_and_none_leave_no_interval() -> None:
    above, below = np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([[2.0, 2.0, 0.0, 0.0]])
    found = bootstrap_ratios(np.pad(above, ((0, 0), (0, 8))), np.pad(below, ((0, 0), (0, 8))), seed=0)
    assert np.isnan(np.concatenate(found)).all()  # two of twelve: 11 % of the draws have neither
    many = np.tile(above, 5), np.tile(below, 5)
    np.testing.assert_allclose(np.concatenate(bootstrap_ratios(*many, seed=0)), 0.5)
    assert np.isnan(np.concatenate(bootstrap_ratios(above * 0, below * 0, seed=0))).all()


@pytest.mark.parametrize("n", [6, 9])
def test_p_equals_scipys_exact_one(n: int) -> None:
    values = noise(2, n, mean=0.7, seed=n)
    expected = [
        permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue for row in values
    ]
    np.testing.assert_allclose(sign_flip_p(values, seed=0), expected)


def test_drawn_p_is_near_the_exact_one_and_never_zero() -> None:
    values = np.stack([noise(20, mean=0.3), noise(20, mean=5.0)])
    found = sign_flip_p(values, seed=0)
    signs = 1.0 - 2.0 * ((np.arange(2**20)[:, None] >> np.arange(20)) & 1)
    exact = (np.abs(signs @ values[0]) >= abs(values[0].sum()) - 1e-9).mean()
    assert abs(found[0] - exact) < 0.02  # 9,999 draws: three standard errors are 0.015
    assert found[1] == 1 / 10000


def test_bootstrap_in_chunks_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = noise(3, 50)
    whole = bootstrap_means(values, seed=0)
    monkeypatch.setattr(resampling, "_CHUNK", 4000)  # 80 of 2,000 draws, 2 of 3 cells at a time
    np.testing.assert_allclose(np.stack(bootstrap_means(values, seed=0)), np.stack(whole), rtol=1e-12)


def test_draws_of_groups_take_as_many_groups_as_there_are() -> None:
    drawn = draw_groups(["b", "a", "b", "c"], draws=200, generator=np.random.default_rng(0))
    assert drawn.group.tolist() == [1, 0, 1, 2]
    assert (drawn.counts.sum(1) == 3).all()
    np.testing.assert_allclose(drawn.counts.mean(0), 1, atol=0.2)  # three standard errors of 200 draws


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


def test_groups_of_unequal_sizes_are_dealt_out_again() -> None:
    groups = np.repeat([0, 1, 2], [1, 2, 3])
    generator = np.random.default_rng(0)
    draws = {tuple(shuffle_over_groups(groups, generator=generator)) for _ in range(50)}
    assert all(sorted(d) == list(range(6)) for d in draws)
    assert len(draws) == 6  # every order of three groups


def test_no_difference_at_all_has_p_one() -> None:
    np.testing.assert_array_equal(sign_flip_p(np.zeros((2, 5)), seed=0), 1.0)
    np.testing.assert_array_equal(sign_flip_p(np.zeros((2, 50)), seed=0), 1.0)


def test_p_is_uniform_without_an_effect() -> None:
    p = sign_flip_p(noise(600, 30, seed=4), seed=0, flips=999)
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
    p = sign_flip_p(noise(300, 40, seed=9), seed=0)
    assert (p < 0.05).sum() > 3  # what the correction is for
    assert (adjust_p(p) < 0.05).sum() == 0
