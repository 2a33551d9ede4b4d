"""bfloat16 on CPUs that cannot multiply it: the same products, several times faster, in float32.

Without AMX or AVX-512 BF16 instructions a bfloat16 matrix product runs at a quarter of float32's speed or less. Within
``fast_bfloat16()`` the operands of each linear map and of each attention are widened for that one product, and the
result is rounded back: what the instructions would compute too, up to the order of summation. Weights stay in
bfloat16, so memory grows by one layer's largest matrix at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tasks.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # the last is Arm's


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The floating-point type named ``"float32"``, ``"bfloat16"`` or ``"float16"``; a type and None stay as they are.

    Raises:
        UserError: If it is another one.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if (found is None and dtype is not None) or (found is not None and found not in DTYPES.values()):
        raise UserError(f"dtype must be float32, bfloat16 or float16, got {dtype}. Weights are floating-point.")
    return found


@cache
def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; True if the operating system does not report it."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return True
    text = listing.read_text()
    flags = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    return any(name in flags.split() for name in _INSTRUCTIONS)


class _Widened(TorchFunctionMode):
    """Runs linear maps and attention of bfloat16 CPU tensors in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        wide = func in (F.linear, F.scaled_dot_product_attention) and _is_narrow(args[0])
        if not wide:
            return func(*args, **given)
        result: Tensor = func(*(_float(a) for a in args), **{k: _float(v) for k, v in given.items()})
        return result.to(torch.bfloat16)


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16 and value.device.type == "cpu"


def _float(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value


@contextmanager
def fast_bfloat16() -> Iterator[None]:
    """Widen bfloat16 products on the CPU while inside; does nothing on a CPU that multiplies bfloat16 itself."""
    if has_fast_bfloat16():
        yield
        return
    with _Widened():
        yield
