"""The batched solver against scikit-learn, one problem at a time."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from probes.linear.ridge import solve_ridge
from probes.linear.solver import rotate, solve_logistic, to_original

# The acceptance line: coefficients within 1e-3 of scikit-learn's.
CLOSE = 1e-3


def example_set(n: int, d: int, classes: int, *, seed: int = 0, hard: bool = True) -> tuple[Tensor, Tensor]:
    """Imbalanced classes in activations with collinear, constant and large-offset dimensions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    noise = -torch.rand(n, classes, generator=generator).log().neg().log()
    tilt = torch.linspace(0, 2, classes)
    y = (x @ torch.randn(d, classes, generator=generator) * 1.5 / d**0.5 + tilt + noise).argmax(1)
    y[:classes] = torch.arange(classes)
    if hard:
        x[:, 1] = x[:, 0] * 2  # collinear
        x[:, 2] = x[:, 0] - x[:, 3] + 1e-3 * x[:, 4]  # nearly so
        x[:, 5] = 3.25  # constant
        x[:, 6] += 50  # mean far from zero
    return x, y


def sklearn_logistic(x: Tensor, y: Tensor, strength: float) -> LogisticRegression:
    return LogisticRegression(C=1 / strength, tol=1e-9, max_iter=20000).fit(x.double().numpy(), y.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d", "classes"), [(150, 20, 2), (150, 20, 5), (40, 60, 3)])
def test_coefficients_equal_scikit_learn_for_all_folds_and_strengths_of_a_batch(
    n: int, d: int, classes: int, dtype: torch.dtype
) -> None:
    x, y = example_set(n, d, classes)
    basis = rotate(x.to(dtype))
    strengths = torch.tensor([100.0, 1.0, 0.1])
    weights = torch.ones(6, n)
    weights[3:, -n // 5 :] = 0  # a fold
    fit = solve_logistic(basis, y.expand(6, n), weights, [classes] * 6, strengths.repeat(2), tol=1e-10)
    assert fit.converged.all()
    scaled = (x - basis.centre) / basis.scale
    for problem in range(6):
        rows = weights[problem] > 0
        reference = sklearn_logistic(scaled[rows], y[rows], float(strengths[problem % 3]))
        weight, bias = fit.linear(problem)
        coef = weight @ basis.rotation.T
        torch.testing.assert_close(coef.double(), torch.from_numpy(reference.coef_), rtol=0, atol=CLOSE)
        torch.testing.assert_close(bias.double(), torch.from_numpy(reference.intercept_), rtol=0, atol=CLOSE)
        assert np.abs(reference.coef_).max() > 0.01  # there is something to agree on


def test_problems_with_different_numbers_of_classes_share_a_batch_in_any_order() -> None:
    x, y = example_set(120, 15, 6, hard=False)
    basis = rotate(x)
    labels = torch.stack([y, y % 2, y.clamp(max=2), (y > 2).long()])
    fit = solve_logistic(basis, labels, torch.ones(4, 120), [6, 2, 3, 2], torch.full((4,), 2.0), tol=1e-10)
    scaled = (x - basis.centre) / basis.scale
    for problem in range(4):
        reference = sklearn_logistic(scaled, labels[problem], 2.0)
        coef = fit.linear(problem)[0] @ basis.rotation.T
        torch.testing.assert_close(coef.double(), torch.from_numpy(reference.coef_), rtol=0, atol=CLOSE)


def test_ties_among_duplicate_examples_with_conflicting_labels_are_solved_as_scikit_learn_does() -> None:
    x, y = example_set(60, 8, 3, hard=False)
    x, y = torch.cat([x, x, x]), torch.cat([y, (y + 1) % 3, y])
    basis = rotate(x)
    fit = solve_logistic(basis, y[None], torch.ones(1, 180), [3], torch.tensor([0.5]), tol=1e-10)
    reference = sklearn_logistic((x - basis.centre) / basis.scale, y, 0.5)
    coef = fit.linear(0)[0] @ basis.rotation.T
    torch.testing.assert_close(coef.double(), torch.from_numpy(reference.coef_), rtol=0, atol=CLOSE)


def test_one_rare_class_equals_scikit_learn() -> None:
    x, _ = example_set(200, 10, 2, hard=False)
    y = torch.zeros(200, dtype=torch.long)
    y[[3, 77]] = 1
    basis = rotate(x)
    fit = solve_logistic(basis, y[None], torch.ones(1, 200), [2], torch.tensor([1.0]), tol=1e-10)
    reference = sklearn_logistic((x - basis.centre) / basis.scale, y, 1.0)
    weight, bias = fit.linear(0)
    torch.testing.assert_close(
        (weight @ basis.rotation.T).double(), torch.from_numpy(reference.coef_), rtol=0, atol=CLOSE
    )
    torch.testing.assert_close(bias.double(), torch.from_numpy(reference.intercept_), rtol=0, atol=CLOSE)


def test_example_weights_count_as_repetitions() -> None:
    x, y = example_set(50, 6, 3, hard=False)
    weights = torch.ones(1, 50)
    weights[0, :20] = 2
    basis = rotate(x, standardise=False)
    once = solve_logistic(basis, y[None], weights, [3], torch.tensor([1.0]), tol=1e-12)
    twice = rotate(torch.cat([x, x[:20]]), standardise=False)
    labels = torch.cat([y, y[:20]])[None]
    repeated = solve_logistic(twice, labels, torch.ones(1, 70), [3], torch.tensor([1.0]), tol=1e-12)
    first, second = to_original(basis, *once.linear(0)), to_original(twice, *repeated.linear(0))
    torch.testing.assert_close(first, second, rtol=0, atol=CLOSE)


def test_a_warm_start_reaches_the_same_optimum_in_fewer_steps() -> None:
    x, y = example_set(150, 20, 4, hard=False)
    basis, weights = rotate(x.double()), torch.ones(1, 150)
    strong = solve_logistic(basis, y[None], weights, [4], torch.tensor([1.2]), tol=1e-12)
    cold = solve_logistic(basis, y[None], weights, [4], torch.tensor([1.0]), tol=1e-12)
    warm = solve_logistic(basis, y[None], weights, [4], torch.tensor([1.0]), tol=1e-12, start=strong)
    torch.testing.assert_close(cold.weight, warm.weight, rtol=0, atol=1e-5)
    assert int(warm.iterations[0]) < int(cold.iterations[0])


def test_a_hard_problem_does_not_change_or_delay_an_easy_one() -> None:
    x, y = example_set(150, 20, 3, hard=False)
    basis = rotate(x)
    alone = solve_logistic(basis, y[None], torch.ones(1, 150), [3], torch.tensor([100.0]))
    both = solve_logistic(basis, y.expand(2, -1), torch.ones(2, 150), [3, 3], torch.tensor([0.001, 100.0]))
    assert both.iterations[1] == alone.iterations[0] < both.iterations[0]
    # Products of differently shaped matrices round differently.
    torch.testing.assert_close(both.linear(1), alone.linear(0), rtol=1e-4, atol=1e-5)


def test_too_few_steps_are_reported_as_not_converged() -> None:
    x, y = example_set(150, 20, 3)
    fit = solve_logistic(rotate(x), y[None], torch.ones(1, 150), [3], torch.tensor([0.01]), max_iter=2)
    assert not fit.converged.any()
    assert fit.iterations.tolist() == [2]


def test_to_original_undoes_centring_scaling_and_rotation() -> None:
    x, y = example_set(80, 12, 3, hard=False)
    x = x * torch.linspace(0.1, 10, 12) + 5
    basis = rotate(x)
    weight, bias = solve_logistic(basis, y[None], torch.ones(1, 80), [3], torch.tensor([1.0])).linear(0)
    coef, intercept = to_original(basis, weight, bias)
    torch.testing.assert_close(x @ coef.T + intercept, basis.rows @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_examples_that_are_not_fitted_do_not_move_mean_scale_or_axes() -> None:
    x, _ = example_set(60, 8, 2, hard=False)
    fitted = torch.arange(60) < 40
    other = x.clone()
    other[40:] *= 1000
    first, second = rotate(x, fitted=fitted), rotate(other, fitted=fitted)
    torch.testing.assert_close(first.rotation, second.rotation)
    torch.testing.assert_close(first.scale, x[:40].std(0, correction=0))


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("n", "d"), [(100, 20), (30, 50)])
def test_ridge_equals_scikit_learn(n: int, d: int, strength: float) -> None:
    x, y = example_set(n, d, 3)
    values = torch.stack([y.double(), x[:, 0].double() ** 2])
    basis = rotate(x)
    weights = torch.ones(n)
    weights[: n // 4] = 0
    weights[-5:] = 2
    fit = solve_ridge(basis, values, weights, [strength, 7.0])
    scaled = ((x - basis.centre) / basis.scale).double().numpy()
    used = (weights > 0).numpy()
    for target in range(2):
        reference = Ridge(alpha=strength).fit(scaled[used], values[target].numpy()[used], weights.numpy()[used])
        coef = fit.weight[0, target] @ basis.rotation.double().T
        torch.testing.assert_close(coef, torch.from_numpy(reference.coef_), rtol=0, atol=CLOSE)
        assert float(fit.bias[0, target]) == pytest.approx(reference.intercept_, abs=1e-3)


def test_errors_name_the_argument_and_the_remedy() -> None:
    x, y = example_set(30, 4, 2, hard=False)
    basis, one = rotate(x), torch.ones(1, 30)
    with pytest.raises(ValueError, match="strength must be positive, got 0.0"):
        solve_logistic(basis, y[None], one, [2], torch.tensor([0.0]))
    with pytest.raises(ValueError, match="problem 0 must have each of its 3 classes"):
        solve_logistic(basis, y[None], one, [3], torch.tensor([1.0]))
    with pytest.raises(ValueError, match="strength must be positive, got -1"):
        solve_ridge(basis, y[None].double(), one[0], [-1.0])
    with pytest.raises(ValueError, match="weights must be positive for some example"):
        solve_ridge(basis, y[None].double(), 0 * one[0], [1.0])
    x[7, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in example 7"):
        rotate(x)
    with pytest.raises(ValueError, match="x must be float32 or float64, got torch.float16"):
        rotate(torch.zeros(3, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match="x must be a non-empty matrix"):
        rotate(torch.zeros(0, 3))
