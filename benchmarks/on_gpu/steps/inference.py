"""Token plans at inference: time to the first token, prefill, decoding, and the cache."""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.steps.interventions import forward_flops
from benchmarks.on_gpu.workplace import Workplace
from benchmarks.token_plans import default_plans, inference

_BATCHES = (1, 8)
_NEW_TOKENS = 16


def plan(place: Workplace, budget: float) -> Work | str:
    """As many rounds as fit; every plan counts as ``all``, which is an upper bound."""
    llava = place.shape
    n_plans = 1 + default_plans(llava.n_layers).count(",")
    batches, new = ((1,), 2) if place.small else (_BATCHES, _NEW_TOKENS)
    weights = sum(p.numel() * p.element_size() for p in llava.model.parameters())
    fixed = 5.0 if place.small else place.model_seconds + 5.0
    for rounds in (1,) if place.small else (5, 3, 1):
        runs = (rounds + 1) * (n_plans + 1)
        flops = runs * forward_flops(llava, sum(batches))
        read = float(runs * new * len(batches) * weights)
        if fixed + place.speed.seconds(flops, read, dtype=place.number) <= budget:
            break
    settings = {"batches": list(batches), "rounds": rounds, "new_tokens": new}
    return Work(lambda: run(place, batches, rounds, new), settings, flops, read, fixed, place.number)


def run(place: Workplace, batches: tuple[int, ...], rounds: int, new: int) -> Iterator[dict[str, Any]]:
    """The table of plans, after each batch size."""
    llava = place.llava()
    rows: list[dict[str, Any]] = []
    for batch in batches:
        place.free()
        given = Namespace(plans=None, batch=batch, repeats=rounds, new_tokens=new)
        rows += [{"batch": batch, **row} for row in inference(llava, given)]
        yield {"rows": rows}


STEP = Step(
    "inference", "token plans: time to the first token, decoding, bytes of the cache", 0.6, plan, uses_model=True
)
