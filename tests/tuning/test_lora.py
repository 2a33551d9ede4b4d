"""LoRA's maps: they compute what PEFT's do, in training and where PEFT has a case of its own."""

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from models.llava import Llava
from tests.tuning.conftest import samples_of
from tuning.data.scene_mix import SceneMix
from tuning.plan.apply import apply_plan
from tuning.plan.dropout import SparseDropout
from tuning.plan.lora import remove_lora
from tuning.plan.plan import LayerPlan, Lora
from tuning.plan.resolve import resolve
from tuning.scoring.answers import collator, model_inputs
from tuning.training.loss import loss_of


def lora_maps(llava: Llava) -> dict[str, Any]:
    return {name: module for name, module in llava.model.named_modules() if isinstance(module, Linear)}


def with_factors(llava: Llava, dropout: float = 0.0, *, low_precision: bool = False) -> dict[str, Any]:
    """The maps of a plan, their factors drawn so that they matter."""
    plan = LayerPlan("1-2", (), "lora", Lora(2, 6, dropout))
    apply_plan(llava, resolve(plan, llava), low_precision=low_precision)
    maps = lora_maps(llava)
    generator = torch.Generator().manual_seed(5)
    for module in maps.values():
        second: Tensor = module.lora_B["default"].weight
        second.data.copy_(torch.randn(second.shape, generator=generator) * 0.1)
    return maps


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("low_precision", [False, True])
def test_loss_and_gradients_of_training_are_those_of_peft(
    fresh: Llava, mix: SceneMix, dropout: float, low_precision: bool
) -> None:
    maps = with_factors(fresh, dropout, low_precision=low_precision)
    items = [samples_of(fresh, mix)[index] for index in range(3)]

    def run(*, training: bool = True) -> dict[str, Tensor]:
        batch = collator(fresh)(items)
        for extra in ("owner", "sample"):
            batch.pop(extra)
        fresh.model.train(training).zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            loss = loss_of(fresh, model_inputs(batch, fresh))
        loss.backward()
        return {
            "loss": loss.detach(),
            **{name: p.grad.clone() for name, p in fresh.model.named_parameters() if p.grad is not None},
        }

    found = run()
    assert torch.equal(found["loss"], run(training=False)["loss"]) is (dropout == 0)
    for module in maps.values():
        assert type(module) is not Linear
        module.__class__ = Linear
    wanted = run()
    assert found.keys() == wanted.keys() and len(wanted) == 1 + 2 * 7 * 2
    for name, value in wanted.items():
        # One rounding fewer in each map and both directions: of float32 last digits, of bfloat16 0.4 % each time.
        limit = (0.05 if low_precision else 1e-5) * float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=limit)


@pytest.mark.parametrize(
    "condition", ["plain", "autocast", "two types", "disabled", "merged", "one row", "hooked factor"]
)
def test_a_map_computes_what_pefts_does(fresh: Llava, condition: str) -> None:
    module = next(iter(with_factors(fresh).values()))
    x = torch.randn(2, 5, module.in_features, generator=torch.Generator().manual_seed(2))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=condition == "autocast")
    called = []
    if condition == "two types":  # what is frozen in bfloat16, factors in float32
        module.base_layer.to(torch.bfloat16)
        x = x.bfloat16()
    if condition == "one row":
        x = x[0, 0]
    if condition == "merged":
        module.merge()
    if condition == "disabled":
        module.enable_adapters(False)
    if condition == "hooked factor":
        module.lora_B["default"].register_forward_hook(lambda *seen: called.append(1))
    with autocast:
        out = module(x)
        assert bool(called) is (condition == "hooked factor")
        wanted, frozen = Linear.forward(module, x), module.base_layer(x)
    assert out.dtype == wanted.dtype and out.shape == wanted.shape
    # Values are below 4; autocast rounds to 8 bits (steps of 2^-6), and once less often here.
    torch.testing.assert_close(out, wanted, rtol=0, atol=2**-6 if condition == "autocast" else 1e-6)
    assert torch.equal(out, frozen) is (condition in ("disabled", "merged"))


def test_only_plain_maps_are_changed(fresh: Llava) -> None:
    class Quantised(nn.Linear):
        """Stands for a map with its own arithmetic."""

    name = "model.language_model.layers.1.mlp.up_proj"
    block = fresh.model.get_submodule(name.rpartition(".")[0])
    plain = fresh.model.get_submodule(name)
    block.up_proj = Quantised(plain.in_features, plain.out_features, bias=False)  # type: ignore[assignment]
    maps = with_factors(fresh, 0.25)
    assert type(maps.pop(name)) is Linear
    assert len(maps) == 2 * 7 - 1 and all(type(module) is not Linear for module in maps.values())
    drops = {module.lora_dropout["default"] for module in maps.values()}
    assert {type(drop) for drop in drops} == {SparseDropout} and {drop.p for drop in drops} == {0.25}


def test_taking_the_factors_out_leaves_the_plain_model(fresh: Llava) -> None:
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    with_factors(fresh)
    remove_lora(fresh, merge=False)
    after = fresh.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not lora_maps(fresh)
