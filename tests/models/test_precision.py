"""Widened bfloat16 products: the same numbers as native ones, in bfloat16, and nothing else touched."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

import models.precision
from models.precision import fast_bfloat16


@pytest.fixture(autouse=True)
def _slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.precision, "has_fast_bfloat16", lambda: False)


def test_a_widened_product_rounds_the_exact_one() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64).bfloat16(), torch.randn(32, 64).bfloat16()
    exact = (x.double() @ weight.double().T).float().bfloat16()
    with fast_bfloat16():
        ours = F.linear(x, weight)
    assert ours.dtype == torch.bfloat16
    assert_close(ours, exact, atol=0.0, rtol=2**-8)  # at most the last of bfloat16's eight bits
    assert_close(ours, F.linear(x, weight), atol=0.0, rtol=2**-7)


def test_attention_is_widened_and_float32_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 8).bfloat16() for _ in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=True).float()
    with fast_bfloat16():
        ours = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        wide = F.linear(torch.ones(1, 2), torch.ones(1, 2))
    assert ours.dtype == torch.bfloat16
    assert_close(ours.float(), exact, atol=1e-2, rtol=2**-8)
    assert wide.dtype == torch.float32


def test_leaving_restores() -> None:
    seen: list[torch.dtype] = []
    plain = torch.ones(2, 2).bfloat16()
    with pytest.raises(ZeroDivisionError), fast_bfloat16():
        raise ZeroDivisionError
    seen.append(F.linear(plain, plain).dtype)
    assert seen == [torch.bfloat16]
    assert not torch.overrides._get_current_function_mode_stack()
