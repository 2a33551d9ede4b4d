"""Layer plans: what a spec means, which parameters it names, and what is refused."""

import json

import pytest
import torch
from torch import nn

from models.llava import Llava
from models.loading.load import load
from tasks.errors import UserError
from tests.conftest import tiny_config
from tuning.cost.measure import synthetic_batch
from tuning.plan.apply import applied, apply_plan, draw_blocks, planned_parameters, trained_parameters
from tuning.plan.default_plans import default_plans
from tuning.plan.layers import anchor_band, layer_spec, select_layers
from tuning.plan.plan import WHOLE, LayerPlan, Lisa, Lora
from tuning.plan.resolve import lisa_layers, resolve

KNOWN = {
    "all": tuple(range(32)),
    "none": (),
    "6-16": tuple(range(6, 17)),
    "3,5,9": (3, 5, 9),
    "0-2, 30-31": (0, 1, 2, 30, 31),
    "every:4": (0, 4, 8, 12, 16, 20, 24, 28),
    "first:8": tuple(range(8)),
    "last:8": tuple(range(24, 32)),
    "middle:0.33": tuple(range(10, 21)),
}


@pytest.mark.parametrize("spec", KNOWN)
def test_a_spec_means_its_layers(spec: str) -> None:
    assert select_layers(spec, 32) == KNOWN[spec]
    assert select_layers(layer_spec(KNOWN[spec], 32), 32) == KNOWN[spec]


def test_random_layers_follow_from_the_seed_alone() -> None:
    drawn = [select_layers(f"random:8@{seed}", 32) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 8
    assert drawn[0] == tuple(sorted(drawn[0]))


def test_the_anchor_band_is_6_to_16_of_32_and_scales_with_depth() -> None:
    assert anchor_band(32) == tuple(range(6, 17))
    assert anchor_band(30) == tuple(range(6, 16))
    assert all(anchor_band(n) for n in range(1, 40))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("32", r"layer must be in \[0, 32\), got 32"),
        ("6-40", r"layer must be in \[0, 32\), got 40"),
        ("16-6", "layers must ascend"),
        ("3,3", "named once each"),
        ("six", "layers must be one of all, none"),
        ("every:0", r"every must count layers in \[1, 32\], got 0"),
        ("first:33", "first must count layers"),
        ("last:x", "layers must be one of"),
        ("middle:1.5", r"middle must be a share in \(0, 1\]"),
        ("random:8", "random must have a number of layers and a seed"),
        ("auto:nowhere", "auto must name a finished run"),
    ],
)
def test_a_spec_that_names_no_layers_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_layers(spec, 32)


def grown(llava: Llava, batch: dict[str, object]) -> set[str]:
    """The parameters that a backward pass reaches."""
    llava.model.train()
    llava.model(**batch).loss.backward()
    names = {name for name, p in llava.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    llava.model.eval()
    return names


PLANS = {
    "one block": LayerPlan("1", ()),
    "band and projector": LayerPlan("1-2"),
    "everything": LayerPlan("all", ("projector", "vision", "embeddings", "final_norm", "lm_head")),
    "stage 2": LayerPlan("all", WHOLE),
    "projector": LayerPlan("none"),
    "tower from 1": LayerPlan("none", ("vision:1",)),
    "tower": LayerPlan("none", ("vision",)),
    "head": LayerPlan("none", ("lm_head",)),
    "norm": LayerPlan("none", ("final_norm",)),
    "embeddings": LayerPlan("none", ("embeddings",)),
    "lora": LayerPlan("1-2", (), "lora", Lora(2, 4, 0.0)),
    "lora and projector": LayerPlan("0,2", ("projector",), "lora", Lora(2, 4, 0.0)),
    "lisa": LayerPlan("0-2", ("final_norm",), "lisa", lisa=Lisa(2, 3)),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_exactly_the_planned_parameters_require_and_get_gradients(name: str, checkpointing: bool, fresh: Llava) -> None:
    resolved = resolve(PLANS[name], fresh)
    batch = synthetic_batch(fresh, rows=2, text_tokens=12)
    with applied(fresh, resolved, checkpointing=checkpointing):
        required = set(trained_parameters(fresh))
        for key, parameter in fresh.model.named_parameters():
            if ".lora_B." in key:  # starts at 0, which stops the gradient of its partner
                nn.init.normal_(parameter, std=0.1)
        assert grown(fresh, batch) == required
        count = sum(p.numel() for p in planned_parameters(fresh, resolved).values())
        assert count == resolved.trained
    assert not trained_parameters(fresh)
    assert not any("lora" in key for key, _ in fresh.model.named_parameters())


def test_the_unused_end_of_the_tower_is_never_claimed(llava: Llava) -> None:
    resolved = resolve(LayerPlan("none", ("vision",)), llava)
    last = f"layers.{llava.n_vision_layers - 1}."
    assert not any(last in name or "post_layernorm" in name for name in resolved.parameters)
    assert any("patch_embedding" in name for name in resolved.parameters)
    assert "never used" in resolved.summary()
    with pytest.raises(UserError, match=r"vision must start at a block in \[0, 2\), got 2"):
        resolve(LayerPlan("none", ("vision:2",)), llava)


def test_every_parameter_belongs_to_one_part_and_counts_add_up(llava: Llava, llava_plain: Llava) -> None:
    for model in (llava, llava_plain):
        resolved = resolve(LayerPlan(), model)
        names = [name for group in resolved.groups for name in group.names]
        assert sorted(names) == sorted(name for name, _ in model.model.named_parameters())
        assert resolved.total == sum(p.numel() for p in model.model.parameters())


def test_lora_touches_the_language_model_alone_where_peft_s_own_selection_does_not(fresh: Llava) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    apply_plan(fresh, resolve(PLANS["lora"], fresh))
    ours = {name for name, _ in fresh.model.named_parameters() if ".lora_" in name}
    assert ours
    assert not any("vision_tower" in name for name in ours)
    other = load(tiny_config(grouped=True), seed=0, validate=False)
    naive = LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    inject_adapter_in_model(naive, other.model)
    assert any("vision_tower" in name and "lora" in name for name, _ in other.model.named_parameters())


def test_tied_embeddings_and_head_are_one_and_said_so() -> None:
    config = tiny_config(grouped=True)
    config.tie_word_embeddings = True
    config.text_config.tie_word_embeddings = True
    tied = load(config, seed=0, validate=False)
    by_head, by_embeddings = (resolve(LayerPlan("none", (part,)), tied) for part in ("lm_head", "embeddings"))
    assert by_head.parameters == by_embeddings.parameters
    assert len(by_head.parameters) == 1
    assert "one tensor" in by_head.summary()
    assert by_head.first_block == 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (LayerPlan("none", ()), "plan must train something"),
        (LayerPlan("9"), r"layer must be in \[0, 3\), got 9"),
        (LayerPlan("1", ("head",)), "train must be some of projector, vision"),
        (LayerPlan("1", ("projector:3",)), "train must be some of"),
        (LayerPlan("1", ("vision:x",)), "train must be some of"),
        (LayerPlan("1", ("projector", "projector")), "name each component once"),
        (LayerPlan("1", ("vision", "vision:1")), "name each component once"),
        (LayerPlan("none", ("projector",), "lora"), "method lora must have layers"),
        (LayerPlan("1", ("embeddings",), "lora"), "lora must leave embeddings and lm_head out"),
        (LayerPlan("1", (), "lisa", lisa=Lisa(2, 3)), "lisa must have at most 1 active"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: LayerPlan, message: str, llava: Llava) -> None:
    with pytest.raises(UserError, match=message):
        resolve(plan, llava)


def test_lora_and_lisa_refuse_impossible_numbers() -> None:
    with pytest.raises(UserError, match="rank >= 1"):
        Lora(rank=0)
    with pytest.raises(UserError, match="active >= 1"):
        Lisa(every=0)


def test_a_name_that_does_not_exist_is_refused(fresh: Llava) -> None:
    from dataclasses import replace

    resolved = replace(resolve(LayerPlan("1"), fresh), parameters=("model.nothing.weight",))
    with pytest.raises(UserError, match=r"got 'model.nothing.weight'"):
        apply_plan(fresh, resolved)


def test_lisa_draws_by_seed_and_step_and_lets_the_rest_rest(fresh: Llava) -> None:
    resolved = resolve(LayerPlan("all", ("final_norm",), "lisa", lisa=Lisa(1, 3)), fresh)
    drawn = [lisa_layers(resolved, step, seed=0) for step in range(30)]
    assert all(drawn[i] == drawn[i - i % 3] for i in range(30))
    assert {layer for layers in drawn for layer in layers} == {0, 1, 2}
    apply_plan(fresh, resolved)
    for step in (0, 3, 6, 9):
        active = draw_blocks(fresh, resolved, step=step, seed=0)
        on = {name for name in trained_parameters(fresh) if ".layers." in name}
        assert on == {name for g in resolved.groups if g.name in {f"block {i}" for i in active} for name in g.names}
        assert any("norm" in name and ".layers." not in name for name in trained_parameters(fresh))


def test_a_plan_survives_json(llava: Llava) -> None:
    for plan in PLANS.values():
        read = json.loads(json.dumps(plan.to_dict()))
        parts = {"train": tuple(read["train"]), "lora": Lora(**read["lora"]), "lisa": Lisa(**read["lisa"])}
        assert LayerPlan(**{**read, **parts}) == plan
        json.dumps(resolve(plan, llava).to_dict())


def test_the_summary_names_layers_counts_and_shares(llava: Llava) -> None:
    resolved = resolve(LayerPlan("1-2", ("projector",)), llava)
    text = resolved.summary()
    assert "1-2 (2 of 3)" in text
    assert f"{resolved.trained:,} of" in text
    assert f"{resolved.trained / resolved.total:.2%}" in text
    assert "gradients stop below the blocks" in text


def test_default_plans_match_the_band_in_size() -> None:
    plans = {plan.name: plan for plan in default_plans(30)}
    assert list(plans)[:2] == ["start", "full"]
    assert select_layers(plans["middle band"].layers, 30) == tuple(range(6, 16))
    sizes = {
        name: len(select_layers(plans[name].layers, 30)) for name in ("first", "last", "evenly spread", "random layers")
    }
    assert set(sizes.values()) == {10}
    both = select_layers(plans["middle band"].layers, 30) + select_layers(plans["complement"].layers, 30)
    assert sorted(both) == list(range(30))


def test_low_precision_keeps_what_trains_wide(fresh: Llava) -> None:
    apply_plan(fresh, resolve(LayerPlan("1", ()), fresh), low_precision=True)
    kinds = {(p.requires_grad, p.dtype) for p in fresh.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
