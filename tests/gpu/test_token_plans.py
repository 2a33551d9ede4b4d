"""Token plans on the device: the plan ``all`` is transformers' forward, caches change nothing, rows are independent."""

import pytest
import torch

from models.inputs import prepare
from models.llava import Llava
from models.token_plans.forward import PlannedBatch, planned
from models.token_plans.plan import TokenPlan
from tests.conftest import make_examples
from tests.gpu.places import PLACES, Place, close, differs, model

PLANS = ("leave@1", "1-2:hide", "freeze:1-2", "keep:0.5@1:attention")


@pytest.mark.parametrize("place", PLACES)
def test_the_packed_forward_of_the_plan_all_equals_transformers(place: Place) -> None:
    llava = model(place)
    inputs = prepare(llava, make_examples(3))
    everything = TokenPlan("all", ("compute",) * llava.n_layers)
    columns = torch.tensor([layout.prompt_stop - 1 for layout in inputs.layout], device=place.device)
    rows = torch.arange(3, device=place.device)
    with torch.inference_mode(), planned(llava, everything, PlannedBatch.of(inputs)):
        packed = llava.model(**inputs.model_kwargs(), use_cache=False).logits[rows, columns]
    assert close(place, packed, llava.logits(inputs))


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("place", PLACES)
def test_a_plan_gives_each_row_what_it_gives_alone_and_something_else_than_all(place: Place, text: str) -> None:
    llava = model(place)
    examples = make_examples(3)
    together = llava.logits(prepare(llava, examples), token_plan=text)
    alone = torch.cat([llava.logits(prepare(llava, [one]), token_plan=text) for one in examples])
    if place.dtype == torch.float32 or "attention" not in text:  # rounding may choose other tokens
        assert close(place, together, alone)
    assert torch.isfinite(together).all()
    if place.dtype == torch.float32:
        assert differs(place, together, llava.logits(prepare(llava, examples)))


def first_steps(llava: Llava, text: str, *, use_cache: bool) -> torch.Tensor:
    inputs = prepare(llava, make_examples(2))
    return llava.generate_tokens(inputs, 4, token_plan=text, use_cache=use_cache)


@pytest.mark.parametrize("text", ["all", "leave@1", "freeze:1-2"])
@pytest.mark.parametrize("place", PLACES)
def test_generation_with_a_cache_equals_generation_without(place: Place, text: str) -> None:
    with_cache, without = (first_steps(model(place), text, use_cache=on) for on in (True, False))
    if place.dtype == torch.float32:
        assert torch.equal(with_cache, without)
    else:  # a tie that rounding decides changes all later tokens
        assert torch.equal(with_cache[:, 0], without[:, 0])
