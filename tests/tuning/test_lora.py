"""LoRA's maps: they compute what PEFT's do, in training and under every condition that PEFT knows."""

from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from models.llava import Llava
from tests.tuning.conftest import samples_of
from tuning.apply import apply_plan
from tuning.dropout import SparseDropout
from tuning.evaluate import collator, model_inputs
from tuning.learned import loss_of
from tuning.lora import remove_lora
from tuning.plan import LayerPlan, Lora, resolve
from tuning.sources import SceneMix


def lora_maps(llava: Llava) -> dict[str, Any]:
    return {name: module for name, module in llava.model.named_modules() if isinstance(module, Linear)}


def with_factors(llava: Llava, dropout: float = 0.0) -> dict[str, Any]:
    """The maps of a plan, their factors drawn so that they matter."""
    apply_plan(llava, resolve(LayerPlan("1-2", (), "lora", Lora(2, 6, dropout)), llava))
    maps = lora_maps(llava)
    generator = torch.Generator().manual_seed(5)
    for module in maps.values():
        second: Tensor = module.lora_B["default"].weight
        second.data.copy_(torch.randn(second.shape, generator=generator) * 0.1)
    return maps


def test_loss_and_gradients_are_those_of_peft(fresh: Llava, mix: SceneMix) -> None:
    maps = with_factors(fresh)
    items = [samples_of(fresh, mix)[index] for index in range(3)]

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        batch = collator(fresh)(items)
        for extra in ("owner", "sample"):
            batch.pop(extra)
        fresh.model.zero_grad(set_to_none=True)
        loss = loss_of(fresh, model_inputs(batch, fresh))
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in fresh.model.named_parameters() if p.grad is not None}

    loss, gradients = run()
    for module in maps.values():
        assert type(module) is not Linear
        module.__class__ = Linear
    wanted_loss, wanted = run()
    torch.testing.assert_close(loss, wanted_loss)
    assert gradients.keys() == wanted.keys() and len(wanted) == 2 * 7 * 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("condition", ["training", "autocast", "two types", "disabled", "merged", "one row"])
def test_a_map_computes_what_pefts_does(fresh: Llava, condition: str) -> None:
    module = next(iter(with_factors(fresh).values()))
    x = torch.randn(2, 5, module.in_features, generator=torch.Generator().manual_seed(2))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=condition == "autocast")
    if condition == "two types":  # what is frozen in bfloat16, factors in float32
        module.base_layer.to(torch.bfloat16)
        x = x.bfloat16()
    if condition == "one row":
        x = x[0, 0]
    if condition == "merged":
        module.merge()
    if condition == "disabled":
        module.enable_adapters(False)
    with autocast:
        out, wanted = module(x), Linear.forward(module, x)
        frozen = module.base_layer(x)
    assert out.dtype == wanted.dtype and out.shape == wanted.shape
    digits = {"rtol": 1.6e-2, "atol": 1e-2} if condition == "autocast" else {"rtol": 1.3e-6, "atol": 1e-5}
    torch.testing.assert_close(out, wanted, **digits)
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
