"""Capture of all layers: relative to a plain forward, and images a second with the store on disk."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.capture import BATCH, QUESTIONS, last_sites, measure_time
from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.steps.interventions import forward_flops, installed_peers
from benchmarks.on_gpu.workplace import Workplace, synchronise
from benchmarks.random_inputs import noise_examples
from probes.activations.fill import capture_pooled, shard_size
from probes.activations.store import ActivationStore
from probes.config import SweepConfig

_IMAGES = 256


def plan(place: Workplace, budget: float) -> Work | str:
    """The comparison with as many repeats as fit, then as many images as fit, at most ``_IMAGES``."""
    one = forward_flops(place.shape, 1)
    peers = [] if place.small else installed_peers()
    fixed = 5.0 if place.small else place.model_seconds + 10.0
    for repeats, images, used in ((5, _IMAGES, peers), (5, _IMAGES, []), (3, 64, []), (1, 16, [])):
        if place.small and repeats > 1:
            continue
        sides = 3 * BATCH + 3 * QUESTIONS + len(used) * (BATCH + QUESTIONS)
        flops = one * ((repeats + 1) * sides + images)
        if fixed + place.speed.seconds(flops, dtype=place.number) <= budget:
            break
    settings = {"repeats": repeats, "images": images, "peers": used}
    return Work(lambda: run(place, repeats, images, used), settings, flops=flops, fixed=fixed, dtype=place.number)


def run(place: Workplace, repeats: int, images: int, peers: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the comparison, then the time of the store."""
    llava = place.llava()
    result: dict[str, Any] = {"rows": [asdict(row) for row in measure_time(llava, repeats, peers)]}
    yield result
    sites, config = last_sites(llava), SweepConfig(batch_size=16)
    examples = noise_examples(images, llava.image_size)
    place.free()
    with tempfile.TemporaryDirectory(dir=place.out) as folder, torch.inference_mode():
        store = ActivationStore(Path(folder), images, min(images, shard_size(config.batch_size)))
        synchronise(place.device)
        began = time.perf_counter()
        for shard in store.shards:
            part = [examples[i] for i in range(shard.start, shard.stop)]
            captured: Mapping[Any, Any] = capture_pooled(llava, part, sites, ["image"], config)
            store.write(shard, captured)
        seconds = time.perf_counter() - began
        written = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    yield result | {
        "store": {
            "images": images, "sites": len(sites), "seconds": seconds, "images_per_second": images / seconds,
            "bytes": written, "peak_memory": place.peak(),
        }
    }  # fmt: skip


STEP = Step(
    "capture", "all layers, mean over image tokens: relative to a plain forward, images/s with the store on disk", 0.6,
    plan, uses_model=True,
)  # fmt: skip
