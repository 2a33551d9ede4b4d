"""The optimizer and the schedule of a run: AdamW over the planned parameters at two rates, a cosine behind a rise."""

import math
from collections.abc import Callable, Mapping

from torch import nn
from torch.optim import AdamW

from tuning.config import Optimisation
from tuning.plan.resolve import Resolved


def adamw(named: Mapping[str, nn.Parameter], resolved: Resolved, optimisation: Optimisation, *, fused: bool) -> AdamW:
    """AdamW over ``named`` alone: the projector and the tower at their rate, the rest at theirs.

    Args:
        named: The planned parameters by name.
        resolved: The plan.
        optimisation: Rates and weight decay.
        fused: One pass over the weights instead of seven; not where they are sharded.
    """
    near = {
        name
        for group in resolved.groups
        if group.trained and (group.name == "projector" or group.name.startswith("vision"))
        for name in group.names
    }
    groups = [
        {"params": [p for name, p in named.items() if name not in near], "lr": optimisation.lr},
        {"params": [p for name, p in named.items() if name in near], "lr": optimisation.projector_lr},
    ]
    return AdamW(
        [group for group in groups if group["params"]],  # type: ignore[arg-type, unused-ignore]
        weight_decay=optimisation.weight_decay,
        fused=fused,
    )


def cosine_behind_rise(warmup: float, steps: int) -> Callable[[int], float]:
    """The share of the peak rate by step: a linear rise over a share ``warmup`` of all steps, then a cosine to zero."""
    warm = math.ceil(warmup * steps)

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        share = (step - warm) / max(1, steps - warm)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return rate
