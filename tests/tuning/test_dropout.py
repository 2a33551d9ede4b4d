"""Dropout by bits: what dropout promises, and that LoRA uses it."""

import pytest
import torch
from torch import nn

from models.llava import Llava
from tuning.apply import apply_plan
from tuning.dropout import BitDropout
from tuning.plan import LayerPlan, Lora, resolve

N = 400_000


@pytest.mark.parametrize("p", [0.0021, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = BitDropout(p)(torch.ones(N, dtype=dtype).view(-1, 8).T)  # not contiguous
    assert out.dtype == dtype
    dropped = float((out == 0).double().mean())
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / N) ** 0.5)  # four standard deviations
    (kept,) = out[out != 0].unique().tolist()
    exact = torch.tensor(1 / (1 - round(p * 2**16) / 2**16), dtype=dtype)
    assert kept == float(exact)


def test_drops_are_independent_of_place_and_of_the_call() -> None:
    torch.manual_seed(0)
    drop = BitDropout(0.5)
    first, second = ((drop(torch.ones(N)) == 0).double() - 0.5 for _ in range(2))
    limit = 4 * 0.25 / N**0.5  # four standard deviations of a mean of products
    assert abs(float((first * second).mean())) < limit
    for lag in (1, 2, 3, 4):  # values that share a random word
        assert abs(float((first[lag:] * first[:-lag]).mean())) < limit


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, requires_grad=True)  # no multiple of four values
    out = BitDropout(0.3)(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)
    assert 0 < int((gradient == 0).sum()) < x.numel()


def test_a_seed_gives_the_same_drops_and_evaluation_none() -> None:
    drop, x = BitDropout(0.5), torch.randn(64)
    torch.manual_seed(3)
    first = drop(x)
    assert not torch.equal(drop(x), first)
    torch.manual_seed(3)
    assert torch.equal(drop(x), first)
    assert drop.eval()(x) is x
    assert BitDropout(0.0)(x) is x


@pytest.mark.parametrize("p", [1e-4, 0.9999])
def test_a_share_too_near_the_ends_for_sixteen_bits_is_torchs_own(p: float) -> None:
    x = torch.ones(N)
    torch.manual_seed(0)
    out = BitDropout(p)(x)
    torch.manual_seed(0)
    assert torch.equal(out, nn.functional.dropout(x, p))


def test_lora_drops_inputs_of_all_its_maps_by_bits(fresh: Llava) -> None:
    apply_plan(fresh, resolve(LayerPlan("1-2", (), "lora", Lora(2, 4, 0.25)), fresh))
    drops = [module for module in fresh.model.modules() if isinstance(module, BitDropout)]
    assert len(drops) == 2 * 7 and {drop.p for drop in drops} == {0.25}
    assert "BitDropout(p=0.25)" in repr(fresh.model)
