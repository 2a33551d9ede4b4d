"""LoRA factors: added by PEFT, and removed without a trace."""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor

from models.llava import Llava
from tuning.plan.apply import apply_plan
from tuning.plan.lora import remove_lora
from tuning.plan.plan import LayerPlan, Lora
from tuning.plan.resolve import resolve


def lora_maps(llava: Llava) -> dict[str, Any]:
    return {name: module for name, module in llava.model.named_modules() if isinstance(module, Linear)}


def with_factors(llava: Llava) -> dict[str, Any]:
    """The maps of a plan, their factors drawn so that they matter."""
    plan = LayerPlan("1-2", (), "lora", Lora(2, 6, 0.0))
    apply_plan(llava, resolve(plan, llava))
    maps = lora_maps(llava)
    generator = torch.Generator().manual_seed(5)
    for module in maps.values():
        second: Tensor = module.lora_B["default"].weight
        second.data.copy_(torch.randn(second.shape, generator=generator) * 0.1)
    return maps


def test_taking_the_factors_out_leaves_the_plain_model(fresh: Llava) -> None:
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    with_factors(fresh)
    remove_lora(fresh, merge=False)
    after = fresh.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not lora_maps(fresh)
