"""Batches are safe: every example gives in a batch what it gives alone, whatever stands beside it."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from models.adapter import Attention
from models.capture import capture
from models.inputs import PaddingSide, prepare
from models.llava import Llava
from models.loading.load import load
from models.pixels import Preprocess
from models.sites import all_sites
from models.tokens import GroupName
from tasks.example import Example, Picture
from tasks.prompts import LETTER, SHORT

# float32 sums in another order (padding changes the shape of every matrix product); values are of order one
ATOL = 1e-5


def _picture(seed: int, width: int, height: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(key=f"noise-{seed}", open=lambda: Image.fromarray(pixels))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Text only, and one to three pictures of different sizes, one of them shown in three examples."""
    a, b, c, d = _picture(0, 50, 31), _picture(1, 29, 64), _picture(2, 33, 33), _picture(3, 120, 77)
    parts = [
        ((a,), "What is it?"),
        ((), f"A red cat at the top left.\nWhere is the cat?\n{SHORT}"),
        ((b, a), "Which of the two is brighter?"),
        ((c, d, a), f"Which is it?\nA. one\nB. two\nC. three\n{LETTER}"),
        ((d, d), "Are they the same?"),
        ((), "Why?"),
    ]
    return [
        Example(id=str(i), pictures=pictures, question=question, answer="yes", group=str(i))
        for i, (pictures, question) in enumerate(parts)
    ]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(llava: Llava, request: pytest.FixtureRequest) -> Llava:
    """The tiny model under each attention implementation."""
    attn: Attention = request.param
    return load(copy.deepcopy(llava.config), attn=attn, validate=False)


@pytest.mark.parametrize("preprocess", ["pad", "hf"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_logits_of_a_batch_equal_those_of_batches_of_one(
    model: Llava, examples: list[Example], padding_side: PaddingSide, preprocess: Preprocess
) -> None:
    batch = prepare(model, examples, padding_side=padding_side, preprocess=preprocess)
    assert (batch.attention_mask.sum(1) < batch.n_positions).sum() == len(examples) - 1  # there is padding
    with torch.inference_mode():
        together = model.model(**batch.model_kwargs()).logits
        for row, example in enumerate(examples):
            alone = model.model(**prepare(model, [example], preprocess=preprocess).model_kwargs()).logits[0]
            real = together[row][batch.attention_mask[row].bool()]
            assert_close(real, alone, atol=ATOL, rtol=0)
            selected = model.model(**batch.select([row]).model_kwargs()).logits[0]
            assert_close(selected[batch.attention_mask[row].bool()], alone, atol=ATOL, rtol=0)


@pytest.mark.parametrize("part", ["language_model", "vision"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_every_site_of_a_batch_equals_that_of_batches_of_one(
    model: Llava, examples: list[Example], padding_side: PaddingSide, part: str
) -> None:
    sites = [site for site in all_sites(model) if (site.part == "language_model") == (part == "language_model")]
    shown = examples if part == "language_model" else [example for example in examples if example.pictures]
    batch = prepare(model, shown, padding_side=padding_side)
    together = capture(model, batch, sites, tokens="all", pool="none", examples=shown)
    for row, example in enumerate(shown):
        alone = capture(model, prepare(model, [example]), sites, tokens="all", pool="none", examples=[example])
        for site in sites:
            value = together[site][row][together.mask[site][row]]
            if site.name == "pattern" and part == "language_model":
                value = value[..., : alone[site].shape[-1]]  # keys count from the row's first real token
            assert_close(value, alone[site][0], atol=ATOL, rtol=0, msg=f"{site} of example {row}")


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("tokens", ["image", "question", "last", "text"])
def test_pooled_groups_of_a_batch_equal_those_of_batches_of_one(
    model: Llava, examples: list[Example], padding_side: PaddingSide, tokens: GroupName
) -> None:
    sites = [site for site in all_sites(model) if site.part == "language_model" and site.name != "pattern"]
    shown = [example for example in examples if example.pictures] if tokens == "image" else examples
    batch = prepare(model, shown, padding_side=padding_side)
    together = capture(model, batch, sites, tokens=tokens, pool="mean", examples=shown)
    for row, example in enumerate(shown):
        alone = capture(model, prepare(model, [example]), sites, tokens=tokens, pool="mean", examples=[example])
        for site in sites:
            assert_close(together[site][row], alone[site][0], atol=ATOL, rtol=0, msg=f"{site} of example {row}")


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_answers_in_a_batch_have_the_loss_they_have_alone(
    model: Llava, examples: list[Example], padding_side: PaddingSide
) -> None:
    def answer_scores(inputs_of: list[Example], row: int) -> torch.Tensor:
        inputs = prepare(model, inputs_of, padding_side=padding_side, answers=True)
        start, stop = inputs.layout[row].prompt_stop, inputs.layout[row].real.stop
        logits: torch.Tensor = model.model(**inputs.model_kwargs()).logits[row, start - 1 : stop - 1]
        return logits.log_softmax(-1).gather(1, inputs.input_ids[row, start:stop, None])

    with torch.inference_mode():
        for row, example in enumerate(examples):
            assert_close(answer_scores(examples, row), answer_scores([example], 0), atol=ATOL, rtol=0)


def test_pictures_matter_to_the_logits_and_their_order_does_too(model: Llava, examples: list[Example]) -> None:
    """Without this the tests above would pass for a model that sees nothing."""
    two = examples[2]
    swapped = Example(id="s", pictures=two.pictures[::-1], question=two.question, answer="yes", group="s")
    with torch.inference_mode():
        logits = model.model(**prepare(model, [two, swapped]).model_kwargs()).logits[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 100 * ATOL


def test_wrong_positions_would_be_noticed(model: Llava, examples: list[Example]) -> None:
    """Without this the tests above would pass for a model that ignores position ids under left padding."""
    batch = prepare(model, examples, padding_side="left")
    wrong = {**batch.model_kwargs(), "attention_mask": torch.ones_like(batch.attention_mask)}
    with torch.inference_mode():
        right = model.model(**batch.model_kwargs()).logits[-1, -1]
        assert (right - model.model(**wrong).logits[-1, -1]).abs().max() > 100 * ATOL
