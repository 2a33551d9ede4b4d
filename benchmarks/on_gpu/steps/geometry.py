"""Geometry of a residual stream at every layer, and the logit lens at every image token."""

import importlib
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.steps.interventions import forward_flops
from benchmarks.on_gpu.workplace import Workplace, synchronise
from benchmarks.random_inputs import noise_examples
from models.inputs import prepare

_POINTS = 2500
_EACH = ("two_nn", "gride")  # of one layer
_PAIRS = ("neighbourhood_overlap", "mutual_knn", "linear_cka", "information_imbalance")  # of a layer and the next


def plan(place: Workplace, budget: float) -> Work | str:
    """All layers and the input of the first, with ``_POINTS`` points each."""
    llava = place.shape
    layers, n = llava.n_layers + 1, 120 if place.small else _POINTS
    d, images = llava.d_model, 1 if place.small else 8
    distances = 2.0 * n * n * d * (len(_EACH) * layers + 2 * len(_PAIRS) * (layers - 1))
    words = 2.0 * layers * images * llava.n_image_tokens * d * int(llava.config.text_config.vocab_size)
    flops = distances + words + forward_flops(llava, images)
    fixed = 8.0 if place.small else place.model_seconds + 10.0
    settings = {"layers": layers, "points": n, "d_model": d, "images": images}
    return Work(lambda: run(place, layers, n, d, images), settings, flops, 0.0, fixed, "float32")


def run(place: Workplace, layers: int, n: int, d: int, images: int) -> Iterator[dict[str, Any]]:
    """Seconds of each measure over all layers, then of the lens."""
    geometry: Any = importlib.import_module("probes.geometry")
    stream = residual_stream(layers, n, d, place.device)
    seconds: dict[str, float] = {}
    result: dict[str, Any] = {"layers": layers, "points": n, "d_model": d, "seconds": seconds}
    for name in (*_EACH, *_PAIRS):
        measure: Callable[..., Any] = getattr(geometry, name)
        synchronise(place.device)
        began = time.perf_counter()
        if name in _EACH:
            for points in stream:
                measure(points)
        else:
            for below, above in pairwise(stream):
                measure(below, above)
        synchronise(place.device)
        seconds[name] = time.perf_counter() - began
        yield result | {"peak_memory": place.peak()}
    del stream
    llava = place.llava()
    inputs = prepare(llava, noise_examples(images, llava.image_size)[:])
    place.free()
    began = time.perf_counter()
    words = llava.logit_lens(inputs, tokens="image")
    synchronise(place.device)
    lens = {"seconds": time.perf_counter() - began, "tokens_and_layers": len(words), "peak_memory": place.peak()}
    yield result | {"logit_lens": lens}


def residual_stream(layers: int, n: int, d: int, device: str) -> list[Tensor]:
    """Points whose spectrum decays, and to which every layer adds some of its own."""
    generator = torch.Generator(device).manual_seed(0)
    scale = torch.arange(1, d + 1, device=device) ** -0.5
    points, found = torch.zeros(n, d, device=device), []
    for _ in range(layers):
        points = points + torch.randn(n, d, generator=generator, device=device) * scale
        found.append(points)
    return found


STEP = Step(
    "geometry", "dimension, overlap and similarity at 33 layers x 2,500 x 4,096; the logit lens of image tokens",
    0.3, plan, needs=("probes.geometry",), uses_model=True,
)  # fmt: skip
