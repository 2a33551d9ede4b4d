"""Weight transplant: the mixture computes what one loaded with mixed weights does, and everything comes back."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from interventions.operations.transplant import transplanted
from interventions.plan.plan import InterventionPlan
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from tests.conftest import make_examples, tiny_config


def logits_of(llava: Llava) -> Tensor:
    with torch.no_grad():
        return llava.model(**prepare(llava, make_examples(2)).model_kwargs()).logits


def weights(llava: Llava) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in llava.model.state_dict().items()}


@pytest.fixture(scope="module")
def donor() -> Llava:
    return load(tiny_config(), seed=11, validate=False)


def by_hand(llava: Llava, donor: Llava, wanted: Callable[[str], bool]) -> Llava:
    """A model of its own, its weights mixed by name."""
    mixed = load(tiny_config(), seed=0, validate=False)
    theirs = donor.model.state_dict()
    mixed.model.load_state_dict({k: theirs[k] if wanted(k) else v for k, v in llava.model.state_dict().items()})
    return mixed


def in_layer(name: str, *layers: int) -> bool:
    return any(f"language_model.layers.{layer}." in name for layer in layers)


@pytest.mark.parametrize(
    ("layers", "head", "projector", "wanted"),
    [
        ((0, 1), False, False, lambda name: in_layer(name, 0, 1)),
        ((1,), False, True, lambda name: in_layer(name, 1) or "multi_modal_projector" in name),
        ((0, 2), True, False, lambda name: in_layer(name, 0, 2) or "lm_head" in name or "model.norm." in name),
        ((), True, True, lambda name: any(part in name for part in ("lm_head", "model.norm.", "projector"))),
    ],
)
def test_a_mixture_computes_what_a_model_with_mixed_weights_does(
    llava: Llava,
    donor: Llava,
    layers: tuple[int, ...],
    head: bool,
    projector: bool,
    wanted: Callable[[str], bool],
) -> None:
    before, kept = logits_of(llava), weights(llava)
    expected = logits_of(by_hand(llava, donor, wanted))
    assert not torch.allclose(before, expected, atol=1e-3)
    with transplanted(llava, donor, layers, head=head, projector=projector) as mixed:
        assert torch.equal(logits_of(mixed), expected)
        assert mixed.id != llava.id and mixed.weight_hash not in (llava.weight_hash, donor.weight_hash)
    assert torch.equal(logits_of(llava), before)
    assert all(torch.equal(value, kept[name]) for name, value in llava.model.state_dict().items())


def test_everything_comes_back_after_an_exception_and_the_donor_stays_as_it_is(llava: Llava, donor: Llava) -> None:
    kept, given = weights(llava), weights(donor)
    owners = [id(parameter) for parameter in llava.model.parameters()]
    seen = []

    def fail_inside() -> None:
        with transplanted(llava, donor, range(3), head=True, projector=True):
            seen.append(weights(llava))
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_inside()
    assert torch.equal(seen[0]["lm_head.weight"], given["lm_head.weight"])
    assert all(torch.equal(value, kept[name]) for name, value in llava.model.state_dict().items())
    assert all(torch.equal(value, given[name]) for name, value in donor.model.state_dict().items())
    assert [id(parameter) for parameter in llava.model.parameters()] == owners


def test_a_model_given_its_own_layers_is_unchanged(llava: Llava) -> None:
    before = logits_of(llava)
    with transplanted(llava, llava, range(3), head=True, projector=True) as same:
        assert torch.equal(logits_of(same), before)


def test_a_tied_head_is_exchanged_without_the_embeddings(donor: Llava) -> None:
    tied, other = tiny_config(), tiny_config()
    tied.tie_word_embeddings = other.tie_word_embeddings = True
    tied.text_config.tie_word_embeddings = other.text_config.tie_word_embeddings = True
    mine, theirs = load(tied, seed=1, validate=False), load(other, seed=2, validate=False)
    embeddings = mine.model.get_input_embeddings().weight
    assert mine.model.get_output_embeddings().weight is embeddings
    kept = embeddings.detach().clone()
    with transplanted(mine, theirs, (), head=True) as mixed:
        assert torch.equal(mixed.model.get_output_embeddings().weight, theirs.model.get_output_embeddings().weight)
        assert torch.equal(mixed.model.get_input_embeddings().weight, kept)
    assert mine.model.get_output_embeddings().weight is embeddings
    assert torch.equal(embeddings, kept)


def test_weights_come_in_the_recipients_dtype(donor: Llava) -> None:
    narrow = load(tiny_config(), seed=0, dtype=torch.bfloat16, validate=False)
    with transplanted(narrow, donor, [0]):
        assert {p.dtype for p in narrow.model.parameters()} == {torch.bfloat16}


def test_plans_say_which_layers_are_exchanged(llava: Llava) -> None:
    spans: dict[str, list[tuple[int, ...]]] = {
        "up-to": [(0,), (0, 1), (0, 1, 2)],
        "together": [(0, 1, 2)],
    }
    for window, layers in spans.items():
        assert [spec.layers for spec in InterventionPlan("transplant", window=window).cells(llava)] == layers  # type: ignore[arg-type]
    assert [spec.layers for spec in InterventionPlan("transplant", layers="0,2").cells(llava)] == [(0,), (2,)]


def test_models_of_another_architecture_are_refused(llava: Llava, llava_plain: Llava, donor: Llava) -> None:
    heads, wide = tiny_config(), tiny_config()
    heads.text_config.num_attention_heads, heads.text_config.num_key_value_heads = 3, 1
    heads.text_config.head_dim = 16
    wide.text_config.intermediate_size = 80
    cases = [
        (llava_plain, [0], "donor must have 3 layers as random@0 has, got 4"),
        (load(heads, seed=0, validate=False), [0], "donor must have the recipient's num_attention_heads, got 3 for 6"),
        (load(wide, seed=0, validate=False), [0], "donor must have weights of the recipient's shapes, got .* at 'mlp"),
        (donor, [3], r"layer must be in \[0, 3\) for random@0, got 3"),
    ]
    kept = weights(llava)
    for other, layers, message in cases:
        with pytest.raises(ValueError, match=message), transplanted(llava, other, layers):
            pass
    assert all(torch.equal(value, kept[name]) for name, value in llava.model.state_dict().items())


def test_a_donor_of_other_words_is_refused(llava: Llava, donor: Llava) -> None:
    """It would be given the recipient's ids, which mean something else to it."""
    processor = copy.deepcopy(donor.processor)
    processor.tokenizer.add_tokens(["xyzzy"])
    other = replace(donor, processor=processor)
    with pytest.raises(ValueError, match="donor must have the patch grid"), transplanted(llava, other, [0]):
        pass
    with transplanted(llava, donor, [0]):
        pass
