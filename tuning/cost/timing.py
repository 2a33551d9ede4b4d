"""The steps of several plans timed in turn, in one process, on one batch, from one set of weights."""

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
    """The cost of a step of each plan; the plans take turns, so that a slow minute slows all of them.

    Args:
        llava: As loaded; it is left so, but rounded by ``bf16``.
        plans: By name.
        inputs: The model's arguments, on its device.
        rounds: How often every plan has its turn.
        repeats: Timed steps a turn.
        warmup: Steps before them. The second still takes memory that no step had before: on a CPU full tuning's took
            half as long again as its third.
        checkpointing: Whether blocks are recomputed.
        bf16: Whether weights and products are as in a run with ``RunOptions.bf16``.
        clock: ``"wall"``, or ``"cpu"`` for this process's processor time, where others share the machine.
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
