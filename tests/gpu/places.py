"""Devices and types of the tests that need a GPU, the models that they share, and how close two tensors must be.

Each test has one body. On a CPU it runs in float32; marked ``gpu`` it runs on a CUDA device in float32 and bfloat16.
"""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from models.adapter import Attention
from models.llava import Llava
from models.loading.load import load
from tests.conftest import tiny_config


class Place(NamedTuple):
    """A device and the type of the weights."""

    device: str
    dtype: torch.dtype

    @property
    def tolerance(self) -> float:
        """The largest difference relative to the largest value: another order of summation, and rounding.

        On a CPU the largest differences are 1e-6 in float32, and 0.03 in bfloat16, between eager and fused attention.
        """
        return 5e-5 if self.dtype == torch.float32 else 6e-2


_ON_GPU = (
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)  # fmt: skip
CUDA = [
    pytest.param(Place("cuda", torch.float32), marks=_ON_GPU, id="cuda-float32"),
    pytest.param(Place("cuda", torch.bfloat16), marks=_ON_GPU, id="cuda-bfloat16"),
]
PLACES: list[Any] = [pytest.param(Place("cpu", torch.float32), id="cpu"), *CUDA]
on_gpu = pytest.mark.parametrize("place", CUDA[:1])


@cache
def model(place: Place, attn: Attention = "sdpa") -> Llava:
    """The tiny LLaVA with grouped queries, equal weights at every place."""
    return load(tiny_config(grouped=True), device=place.device, dtype=place.dtype, attn=attn, seed=0, validate=False)


def distance(got: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((got.float() - expected.float()).abs().max() / expected.float().abs().max())


def close(place: Place, got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by less than the place's tolerance."""
    assert torch.isfinite(got).all()
    return distance(got, expected) < place.tolerance


def differs(place: Place, got: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by more than twice the tolerance, so that ``close`` would notice."""
    return distance(got, expected) > 2 * place.tolerance
