"""Speed is measured as the model runs: in float32 where the CPU does not multiply bfloat16."""

import pytest
import torch

from records.processes import matmul_speed


def test_speed_in_bfloat16_is_that_of_the_widened_product(monkeypatch: pytest.MonkeyPatch) -> None:
    widened: list[object] = []
    monkeypatch.setattr("models.precision.has_fast_bfloat16", lambda: False)
    monkeypatch.setattr("models.precision._float", lambda value: widened.append(value) or value.float())
    assert matmul_speed("cpu", torch.bfloat16) > 0
    assert len(widened) == 6  # two operands, three times
    matmul_speed("cpu", torch.float32)
    assert len(widened) == 6
