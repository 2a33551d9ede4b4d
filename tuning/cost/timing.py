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
    clock: ClockName = "wall",
    on_turn: Callable[[int, str, Cost], None] = lambda turn, name, cost: None,
) -> dict[str, Cost]:
    """The cost of a step of each plan. The plans take turns, so that a slow minute slows all of them.

    Args:
        llava: The loaded model; it is restored, but rounded by ``bf16``.
        plans: Resolved plans by name.
        inputs: The model's arguments, on its device.
        rounds: Turns of every plan.
        repeats: Timed steps per turn.
        warmup: Steps before the timed ones. The second step still allocates memory: on a CPU full tuning's second step
            took half as long again as its third.
        checkpointing: Whether blocks are recomputed.
        bf16: Whether frozen weights and products are bfloat16.
        clock: ``"wall"``, or ``"cpu"`` for the processor time of this process, on a shared machine.
        on_turn: Called after each turn.
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
                    count=turn == 0,
                    clock=clock,
                )
            before = costs.get(name)
            costs[name] = cost if before is None else replace(before, seconds=before.seconds + cost.seconds)
            on_turn(turn, name, cost)
    return costs
