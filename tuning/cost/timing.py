"""Time steps of several plans in turn, in one process, on one batch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from models.llava import Llava
from tuning.cost.measure import ClockName, Cost, measure_step
from tuning.plan.apply import applied
from tuning.plan.resolve import Resolved


def measure_plans(
    llava: Llava,
    plans: Mapping[str, Resolved],
    inputs: Mapping[str, Any],
    *,
    rounds: int = 3,
    repeats: int = 2,
    warmup: int = 2,
    checkpointing: bool = False,
    bf16: bool = False,
    count: bool = True,
    clock: ClockName = "wall",
    on_turn: Callable[[int, str, Cost], None] = lambda turn, name, cost: None,
) -> dict[str, Cost]:
    """The cost of a step of each plan. The plans take turns, so that a slow minute slows all of them.

    The model is restored, but ``bf16`` leaves its weights rounded. Each of the ``rounds`` turns has ``repeats`` timed
    steps after ``warmup`` untimed ones: on a CPU full tuning's second step, which still allocates memory, took 50 %
    longer than its third.
    Without ``count``, operations are those of the closed form. The clock ``"cpu"`` measures the processor time of this
    process, for a shared machine.
    """
    costs: dict[str, Cost] = {}
    for turn in range(rounds):
        for name, resolved in plans.items():
            with applied(llava, resolved, checkpointing=checkpointing, low_precision=bf16):
                cost = measure_step(
                    llava,
                    resolved,
                    dict(inputs),
                    repeats=repeats,
                    warmup=warmup,
                    checkpointing=checkpointing,
                    bf16=bf16,
                    count=count and turn == 0,
                    clock=clock,
                )
            before = costs.get(name)
            costs[name] = cost if before is None else replace(before, seconds=before.seconds + cost.seconds)
            on_turn(turn, name, cost)
    return costs
