"""Where the steps run: the device, the measured speed of a product on it, and the model that the steps share."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_inputs import Size, llava_config
from models.llava import Llava
from models.loading.load import load

REAL = "random:llava-1.5-7b"
# A forward pass of many positions reaches about this share of a large product's speed. It is an assumption; each record
# states the estimate and the time that was taken.
SHARE = 0.4
MODEL_SECONDS = 15.0  # to draw 7e9 random weights on the device and build the modules, assumed


@dataclass(frozen=True)
class Speed:
    """What the device does in a second, from one product of each type and one copy."""

    products: dict[str, float]
    """FLOPs of a large product by type."""
    copied: float
    """Bytes that a copy reads."""

    def seconds(self, flops: float, bytes_read: float = 0.0, *, dtype: str) -> float:
        """Seconds of products and reads, at ``SHARE`` of the measured speed."""
        return (flops / self.products[dtype] + bytes_read / self.copied) / SHARE


def synchronise(device: str) -> None:
    """Wait until the device has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _fastest(run: Callable[[], object], device: str, repeats: int = 10) -> float:
    run()
    times = []
    for _ in range(repeats):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)


def measure_speed(device: str, *, small: bool) -> Speed:
    """Time a product of each type and a copy on ``device``."""
    side = 128 if small else 8192
    products = {}
    for dtype in ("float32", "bfloat16"):
        left = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
        product = partial(torch.matmul, left, left, out=torch.empty_like(left))
        products[dtype] = 2 * side**3 / _fastest(product, device)
    source = torch.empty(2**20 if small else 2**30, dtype=torch.uint8, device=device)
    return Speed(products, source.numel() / _fastest(partial(torch.empty_like(source).copy_, source), device))


@cache
def _toy(device: str) -> Llava:
    """The model of toy size, in float32; the runs of a process share it."""
    config = llava_config(Size(64, 128, 4, 4), Size(32, 64, 3, 4), side=3, pad_token_id=None)
    return load(config, device=device, dtype=torch.float32, validate=False)


@dataclass
class Workplace:
    """The device and what the steps share."""

    device: str
    small: bool
    out: Path
    """The folder of the records."""
    speed: Speed
    log: Callable[[str], None] = print
    _models: dict[str, Llava] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights: bfloat16, or float32 for the toy model."""
        return torch.float32 if self.small else torch.bfloat16

    @property
    def number(self) -> Any:
        """The name of ``dtype``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def shape(self) -> Llava:
        """The model without weights, to count operations."""
        return self._model("meta")

    @property
    def model_seconds(self) -> float:
        """Seconds until the model is there: 0 once a step has built it."""
        return 0.0 if self.device in self._models or self.small else MODEL_SECONDS

    def llava(self) -> Llava:
        """The model, with random weights drawn on the device; built once."""
        began = time.perf_counter()
        fresh = self.device not in self._models
        model = self._model(self.device)
        synchronise(self.device)
        if fresh:
            self.log(f"  built {model!r} in {time.perf_counter() - began:.1f} s")
        return model

    def _model(self, device: str) -> Llava:
        if device not in self._models:
            real = partial(load, REAL, device=device, dtype=self.dtype, validate=False)
            self._models[device] = _toy(device) if self.small else real()
        return self._models[device]

    def free(self) -> None:
        """Return cached memory to the device and start a new peak."""
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | None:
        """Bytes allocated at most since ``free``; None on a CPU, where nothing measures them."""
        return float(torch.cuda.max_memory_allocated()) if self.device.startswith("cuda") else None
