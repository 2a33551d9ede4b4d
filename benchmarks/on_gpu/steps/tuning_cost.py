"""The time and memory of a training step of each layer plan, relative to full tuning, in turn on one batch."""

import gc
import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.workplace import Workplace
from benchmarks.tuning_cost import build_plans, describe_costs
from models.llava import Llava
from tuning.cost.flops import Shape, closed_form
from tuning.cost.measure import Cost, measure_step, synthetic_batch
from tuning.cost.timing import measure_plans
from tuning.plan.apply import applied
from tuning.plan.resolve import Resolved

ROUNDS, REPEATS, WARM_UP = 4, 2, 1  # eight timed steps for each plan
_ROWS = (16, 12, 8, 6, 4, 3, 2, 1)
_TEXT = 128
TARGETS = {"6-16": 0.75, "6-16 + projector": 0.82}  # time of a step relative to full tuning
_COUNTED = ("flops_ratio", "closed_form_over_counted", "flops_forward", "flops_backward", "bytes_activations")


def plan(place: Workplace, budget: float) -> Work | str:
    """The largest batch whose steps fit the limit; memory is tried when the step runs."""
    rounds, repeats, text = (1, 1, 16) if place.small else (ROUNDS, REPEATS, _TEXT)
    flops = 0.0
    for rows in (2,) if place.small else _ROWS:
        flops = _flops(place.shape, rows, text) * rounds * (repeats + WARM_UP)
        fixed = 10.0 if place.small else place.model_seconds + 15.0
        if fixed + place.speed.seconds(flops, dtype=place.number) <= budget or rows == 1:
            break
    settings = {"rows": rows, "text_tokens": text, "timed_steps": rounds * repeats}
    return Work(lambda: run(place, rows, text, rounds, repeats), settings, flops=flops, fixed=fixed, dtype=place.number)


def _flops(shape: Llava, rows: int, text: int) -> float:
    """One step of every plan, with and without checkpointing."""
    n = shape.n_image_tokens + text
    batch = Shape(rows, n, rows, rows * (text - text // 2))
    plans = build_plans(shape, more=True).values()
    return sum(closed_form(shape, one, batch, checkpointing=on).total for one in plans for on in (False, True))


def fitting(llava: Llava, full: Resolved, rows: int, text: int) -> int:
    """The largest number of rows, at most ``rows``, for which a step of full tuning has memory."""
    for tried in [rows, *(n for n in _ROWS if n < rows)]:
        try:
            with applied(llava, full):
                batch = synthetic_batch(llava, rows=tried, text_tokens=text)
                measure_step(llava, full, batch, repeats=1, warmup=1, count=False)
            return tried
        except torch.cuda.OutOfMemoryError:
            pass
        gc.collect()
        torch.cuda.empty_cache()
    raise RuntimeError("full tuning must fit one row on the device, got out of memory.")


def run(place: Workplace, rows: int, text: int, rounds: int, repeats: int) -> Iterator[dict[str, Any]]:
    """The table of plans after every round."""
    llava = place.llava()
    plans = build_plans(llava, more=True)
    fits = fitting(llava, plans["full"], rows, text)
    batch = synthetic_batch(llava, rows=fits, text_tokens=text)
    result: dict[str, Any] = {
        "rows": fits, "rows_limited_by": "memory" if fits < rows else "time", "text_tokens": text,
        "image_tokens": llava.n_image_tokens, "dtype": place.number, "attention": llava.attention,
        "optimizer": "AdamW (torch, fused), moments in the trained weights' type, lr 0", "plans": [],
    }  # fmt: skip
    done: list[dict[str, Any]] = []
    for checkpointing in (False, True):
        costs: dict[str, Cost] = {}
        for _ in range(rounds):
            found = measure_plans(
                llava, plans, batch, rounds=1, repeats=repeats, warmup=WARM_UP, checkpointing=checkpointing, count=False
            )
            costs = {name: _joined(costs.get(name), cost) for name, cost in found.items()}
            rows_now = describe_costs(llava, plans, costs, checkpointing=checkpointing)
            kept = [{key: value for key, value in row.items() if key not in _COUNTED} for row in rows_now]
            result = result | {"plans": [*done, *kept], "targets": _targets([*done, *kept])}
            yield result
        done = result["plans"]
    _draw(place, done)


def _joined(before: Cost | None, cost: Cost) -> Cost:
    if before is None:
        return cost
    peak = max(before.peak_memory, cost.peak_memory)
    return Cost(
        cost.trainable, cost.flops, cost.closed_form, before.seconds + cost.seconds, cost.tokens, cost.memory, peak,
        cost.peak_is_measured,
    )  # fmt: skip


def _targets(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        row["plan"]: {"target": TARGETS[row["plan"]], "step_time_ratio": row["step_time_ratio"]}
        for row in rows if row["plan"] in TARGETS and not row["checkpointing"]
    }  # fmt: skip


def _draw(place: Workplace, rows: list[dict[str, Any]]) -> None:
    from figures import draw_cost_ratios, save_figure  # takes a second, and the measurement does not need it

    table = pd.DataFrame(rows).assign(flops_ratio=math.nan)  # not counted
    save_figure(draw_cost_ratios(table), place.out / "tuning-cost")


STEP = Step(
    "tuning-cost", "time, memory and tokens/s of a training step of each plan, relative to full tuning", 2.6, plan,
    needs=("peft",), uses_model=True,
)  # fmt: skip
