"""Dtypes of weights, and fast bfloat16 on CPUs without bfloat16 instructions.

Without AMX or AVX-512 BF16 a bfloat16 matrix product has at most a quarter of float32's speed. Inside
``fast_bfloat16()`` each linear map and each attention converts its operands to float32 and rounds the result, which
equals native bfloat16 up to the order of summation. Weights stay in bfloat16.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tasks.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # the last is the name on Arm


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The torch type of ``"float32"``, ``"bfloat16"`` or ``"float16"``; these types and None are returned unchanged."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in DTYPES.values():
        raise UserError(f"dtype must be float32, bfloat16 or float16, got {dtype}. Weights are floating-point.")
    return found


@cache
def has_fast_bfloat16() -> bool:
    """Whether this CPU has bfloat16 instructions; True if the operating system does not list them."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return True
    text = listing.read_text(encoding="utf-8")
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return any(name in flags.split() for name in _INSTRUCTIONS)


class _Widened(TorchFunctionMode):
    """Run linear maps and attention of bfloat16 CPU tensors in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func not in (F.linear, F.scaled_dot_product_attention) or not _is_narrow(args[0]):
            return func(*args, **named)
        result: Tensor = func(*(_float(a) for a in args), **{k: _float(v) for k, v in named.items()})
        return result.to(torch.bfloat16)


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _float(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value


@contextmanager
def fast_bfloat16() -> Iterator[None]:
    """Compute bfloat16 products on the CPU in float32; does nothing on a CPU with bfloat16 instructions."""
    with nullcontext() if has_fast_bfloat16() else _Widened():
        yield
