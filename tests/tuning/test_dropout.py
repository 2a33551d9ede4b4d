"""Dropout by gaps: what dropout promises, and where it is torch's own."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tuning.plan import dropout
from tuning.plan.dropout import SparseDropout, places

N = 400_000


@pytest.mark.parametrize("p", [0.002, 0.05, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = SparseDropout(p)(torch.ones(N, dtype=dtype).view(-1, 8).T)  # not contiguous
    assert out.dtype == dtype and out.shape == (8, N // 8)
    dropped = float((out == 0).double().mean())
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / N) ** 0.5)  # four standard deviations
    (kept,) = out[out != 0].unique().tolist()
    assert kept == float(torch.tensor(1 / (1 - p), dtype=dtype))


def test_drops_are_independent_of_place_and_of_the_call() -> None:
    torch.manual_seed(0)
    p = 0.5
    drop = SparseDropout(p)
    first, second = ((drop(torch.ones(N)) == 0).double() - p for _ in range(2))
    limit = 4 * p * (1 - p) / N**0.5  # four standard deviations of a mean of products
    assert abs(float((first * second).mean())) < limit
    for lag in (1, 2, 3, 4):
        assert abs(float((first[lag:] * first[:-lag]).mean())) < limit
    assert abs(float(first[: N // 2].mean() - first[N // 2 :].mean())) < 4 * (p * (1 - p) * 4 / N) ** 0.5


def test_gaps_between_dropped_values_are_geometric() -> None:
    torch.manual_seed(0)
    p = 0.05
    at = places(20 * N, p).numpy()
    gaps = np.diff(at)
    for gap in (1, 2, 3, 10, 40):
        share = p * (1 - p) ** (gap - 1)
        assert (gaps == gap).mean() == pytest.approx(share, abs=4 * (share / len(gaps)) ** 0.5)
    assert at[0] >= 0 and at[-1] < 20 * N


def test_every_place_and_every_pair_is_dropped_as_often_as_it_should_be() -> None:
    torch.manual_seed(0)
    p, calls = 0.3, 20_000
    dropped = torch.zeros(calls, 4)
    for row in dropped:
        row[places(4, p)] = 1
    together = dropped.T @ dropped / calls  # singles on the diagonal
    wanted = torch.full((4, 4), p * p).fill_diagonal_(p)
    limit = 4 * (wanted * (1 - wanted) / calls).sqrt()  # four standard deviations
    assert bool(((together - wanted).abs() < limit).all())


@pytest.mark.parametrize("p", [1e-12, 1e-25, 1e-45])
def test_a_share_of_next_to_nothing_drops_nothing(p: float) -> None:
    torch.manual_seed(0)
    assert len(places(1000, p)) == 0


def test_too_few_gaps_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "_SPARE", -140)  # the mean is then 141 standard deviations
    torch.manual_seed(0)
    p = 0.05
    at = places(N, p)
    assert len(at) / N == pytest.approx(p, abs=4 * (p * (1 - p) / N) ** 0.5)
    assert bool((at.diff() > 0).all()) and int(at[-1]) > 0.99 * N


@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4)])
def test_the_gradient_passes_where_the_value_did(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    out = SparseDropout(0.2)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)
    assert x.numel() < 100 or 0 < int((gradient == 0).sum()) < x.numel()


def test_the_input_is_left_alone_and_gradients_that_are_not_contiguous_are_taken() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 32, requires_grad=True)
    out = SparseDropout(0.2)(x)
    given = torch.ones(1, 1).expand(64, 32)  # one number in memory
    (gradient,) = torch.autograd.grad(out, x, given)
    assert torch.equal(gradient, out) and bool((x == 1).all()) and bool((given == 1).all())


def test_a_seed_gives_the_same_drops_and_evaluation_none() -> None:
    drop, x = SparseDropout(0.25), torch.randn(64)
    torch.manual_seed(3)
    first = drop(x)
    assert not torch.equal(drop(x), first)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first)
    assert drop.eval()(x) is x
    assert SparseDropout(0.0)(x) is x


def test_recomputing_a_block_drops_the_same() -> None:
    x = torch.randn(64, requires_grad=True)
    seen: list[Tensor] = []

    def block(given: Tensor) -> Tensor:
        seen.append(drop(given).detach())
        return drop(given).sin()

    drop = SparseDropout(0.25)
    out: Tensor = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
    out.sum().backward()
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


def test_a_large_share_is_torchs_own() -> None:
    x = torch.ones(N)
    torch.manual_seed(0)
    out = SparseDropout(0.75)(x)
    torch.manual_seed(0)
    assert torch.equal(out, nn.functional.dropout(x, 0.75))
