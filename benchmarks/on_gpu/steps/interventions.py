"""A map of patches of the whole image at every layer: forwards' worth of time and peak memory, one pair and eight."""

from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.interventions import PEERS, measure_image
from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.workplace import Workplace
from models.llava import Llava
from models.token_plans.cost import Sizes, prefill
from models.token_plans.plan import parse_token_plan

_PAIRS = (1, 8)
_TEXT = 64  # tokens of a prompt beside the image, rounded up
_MAP_FORWARDS = 6.0  # of a map with its base runs: the target, on a CPU 3.0 were measured


def forward_flops(llava: Llava, rows: int) -> float:
    """FLOPs of a forward of the language model on ``rows`` prompts with one image."""
    products = prefill(Sizes.of(llava), parse_token_plan("all", llava.n_layers), llava.n_image_tokens, _TEXT)
    return 2.0 * rows * products


def installed_peers() -> list[str]:
    """The libraries to compare with that are installed."""
    return [name for name in PEERS if find_spec(name) is not None]


def plan(place: Workplace, budget: float) -> Work | str:
    """As many repeats as fit, and the other libraries with one pair if there is time for them."""
    pairs = (1, 2) if place.small else _PAIRS
    one = forward_flops(place.shape, 1)
    fixed = 8.0 if place.small else place.model_seconds + 5.0
    peers = [] if place.small else installed_peers()
    for repeats, used in ((5, peers), (3, peers), (3, []), (1, [])):
        if place.small and repeats > 1:
            continue
        maps = (repeats + 1) * sum(pairs) * (1 + _MAP_FORWARDS)
        loops = len(used) * (repeats + 1) * (2 + place.shape.n_layers)
        flops = one * (maps + loops)
        if fixed + place.speed.seconds(flops, dtype=place.number) <= budget:
            break
    settings = {"pairs": list(pairs), "repeats": repeats, "peers": used}
    return Work(lambda: run(place, pairs, repeats, used), settings, flops=flops, fixed=fixed, dtype=place.number)


def run(place: Workplace, pairs: tuple[int, ...], repeats: int, peers: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the comparison, after each number of pairs."""
    llava = place.llava()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for n in pairs:
            place.free()
            rows += [asdict(row) for row in measure_image(llava, repeats, pairs=n)]
            yield {"rows": rows}
        if peers:
            rows += [asdict(row) for row in measure_image(llava, repeats, peers=peers)]
            yield {"rows": rows}


STEP = Step(
    "interventions", "the whole image patched at every layer, one pair and eight: forwards' worth of time, peak memory",
    0.9, plan, uses_model=True,
)  # fmt: skip
