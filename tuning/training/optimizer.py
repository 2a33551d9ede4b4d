"""The optimizer of a run: AdamW over the planned parameters, at two learning rates."""

import math
from collections.abc import Mapping

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from tuning.config import RECIPES, Optimisation
from tuning.plan.resolve import Resolved


def make_adamw(
    named: Mapping[str, nn.Parameter], resolved: Resolved, optimisation: Optimisation, *, fused: bool
) -> AdamW:
    """AdamW over the planned parameters: ``projector_lr`` for projector and vision tower, ``lr`` for all others.

    The ``fused`` kernel does not support sharded parameters.
    """
    near = {
        name
        for group in resolved.groups
        if group.trained and (group.name == "projector" or group.name.startswith("vision"))
        for name in group.names
    }
    rates = optimisation.with_rates(RECIPES[2])
    groups = [
        {"params": [p for name, p in named.items() if name not in near], "lr": rates.lr},
        {"params": [p for name, p in named.items() if name in near], "lr": rates.projector_lr},
    ]
    return AdamW(
        [group for group in groups if group["params"]],  # type: ignore[arg-type, unused-ignore]
        weight_decay=optimisation.weight_decay,
        fused=fused,
    )


def make_schedule(optimizer: Optimizer, optimisation: Optimisation, steps: int) -> LambdaLR:
    """A linear warm-up from 0 over the share ``warmup`` of all steps, then a cosine to 0, as in LLaVA's recipe."""
    schedule: LambdaLR = get_cosine_schedule_with_warmup(optimizer, math.ceil(optimisation.warmup * steps), steps)
    return schedule
