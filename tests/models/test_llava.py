"""Loading: names, options, counts, validation, and random models."""

import time

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from models.hooks import CaptureError
from models.llava import Llava
from models.loading.load import load, probe_forward, randomised
from models.sites import Site, all_sites
from tasks.errors import UserError
from tests.conftest import tiny_config


def test_counts_come_from_the_model(llava: Llava, llava_plain: Llava) -> None:
    assert (llava.n_layers, llava.n_vision_layers, llava.d_model, llava.grid) == (3, 3, 48, (4, 4))
    assert (llava_plain.n_layers, llava_plain.n_vision_layers, llava_plain.grid) == (4, 2, (3, 3))
    assert (llava.n_image_tokens, llava.image_token_id, llava.image_size) == (16, 600, 28)
    assert (llava.device.type, llava.dtype, llava.model.training) == ("cpu", torch.float32, False)
    assert "n_layers=3" in repr(llava)


@pytest.mark.parametrize("name", ["smoll", "random:llava-1.5-70b", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_an_unknown_name_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"model must be one of smol, smol-stage1, random:llava-1.5-7b.*random:tiny.*got"
    ):
        load(name)


def test_a_hub_id_that_is_not_at_hand_gives_one_sentence_when_offline() -> None:
    with pytest.raises(ValueError, match=r"must be in the local Hugging Face cache .* got 'nobody/nothing'") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("option", "value"), [("attn", "flash"), ("dtype", torch.int8)])
def test_a_wrong_option_is_refused(option: str, value: object) -> None:
    # the type checker that tests run under may be first to refuse what is not among the options
    with pytest.raises((ValueError, TypeError), match=rf"{option} must be|parameter '{option}'"):
        load(tiny_config(), **{option: value})  # type: ignore[arg-type]


def test_dtype_attention_and_seed_take_effect(llava: Llava) -> None:
    other = load(tiny_config(), dtype=torch.bfloat16, attn="eager", seed=5)
    assert other.dtype == torch.bfloat16
    assert other.model.config._attn_implementation == "eager"
    assert other.weight_hash != llava.weight_hash == load(tiny_config(), validate=False).weight_hash
    assert not torch.equal(other.model.lm_head.weight.float(), llava.model.lm_head.weight)


def test_a_randomised_model_differs_in_every_matrix_and_in_nothing_else(llava: Llava) -> None:
    control = randomised(llava, seed=7)
    assert control.tokenizer is llava.tokenizer
    assert control.id == f"random({llava.id})@7"
    ours, theirs = dict(llava.model.named_parameters()), dict(control.model.named_parameters())
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert not any(torch.equal(ours[key], theirs[key]) for key in ours if not key.endswith(".bias"))
    same = randomised(llava, seed=0)
    for key, value in same.model.named_parameters():
        assert_close(value, ours[key], rtol=0, atol=0)


def test_tied_embeddings_stay_tied() -> None:
    config = tiny_config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    tied = load(config)
    assert tied.model.lm_head.weight.data_ptr() == tied.model.get_input_embeddings().weight.data_ptr()


def test_another_architecture_is_refused_as_a_config_too() -> None:
    config = tiny_config()
    config.text_config.model_type = "mistral"
    with pytest.raises(UserError, match=r"must be LLaVA-1\.5"):
        load(config)


@pytest.fixture
def spoilt() -> Llava:
    """A model of one's own, to break."""
    return load(tiny_config(), validate=False)


def test_validation_names_a_site_that_does_not_fire(spoilt: Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    block = spoilt.blocks[1]
    mlp = block.mlp
    monkeypatch.setattr(mlp, "forward", mlp.forward)
    skipped = nn.Module()
    skipped.forward = mlp.forward  # type: ignore[method-assign]
    block.mlp = skipped
    block.add_module("unused", mlp)
    probe_forward(spoilt, all_sites(spoilt))  # a stand-in that is called is fine
    monkeypatch.setattr(type(block), "forward", lambda self, hidden_states, **kwargs: hidden_states)
    with pytest.raises(CaptureError, match=r"site 'blocks.0.attn.hook_q' must fire"):
        probe_forward(spoilt, all_sites(spoilt))


def test_validation_notices_a_final_norm_that_the_logits_do_not_use(
    spoilt: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Llava.unembed
    monkeypatch.setattr(Llava, "unembed", lambda self, resid: original(self, resid) * 1.1)
    with pytest.raises(CaptureError, match=r"'blocks.2.hook_resid_post' must give the logits"):
        probe_forward(spoilt, [Site("language_model", 2, "resid_post")])


def test_the_tiny_random_model_loads_by_name_in_under_a_second_and_follows_the_seed() -> None:
    def seconds() -> float:
        began = time.process_time()
        load("random:tiny")
        return time.process_time() - began

    assert min(seconds() for _ in range(3)) < 1  # the first also imports
    tiny = load("random:tiny")
    assert (tiny.id, tiny.n_layers, tiny.d_model, tiny.grid) == ("random:tiny@0", 4, 48, (4, 4))
    assert (tiny.n_heads, tiny.n_kv_heads, tiny.n_vision_layers) == (6, 2, 3)
    assert load("random:tiny", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype must be float32, bfloat16 or float16, got int8"):
        load("random:tiny", dtype="int8")
    assert load("random:tiny").weight_hash == tiny.weight_hash != load("random:tiny", seed=1).weight_hash
    text = tiny.config.text_config
    marks = tiny.tokenizer.convert_ids_to_tokens([text.bos_token_id, text.eos_token_id, text.pad_token_id])
    assert marks == ["<s>", "</s>", "<pad>"]


def test_on_the_device_meta_a_published_size_has_shapes_and_no_values() -> None:
    big = load("random:llava-1.5-7b", device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in big.model.parameters()} == {"meta"}
    assert (big.n_layers, big.d_model, big.dtype) == (32, 4096, torch.bfloat16)
    assert big.model.num_parameters() == 7_063_427_072
