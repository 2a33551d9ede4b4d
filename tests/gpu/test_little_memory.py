"""Models on machines with little memory: weights in 4 and 8 bits, and blocks that wait outside the device."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from interventions.engines.edits import OTHER, Cell, Write
from interventions.engines.engine import prepare_base, run_cells
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.loading.placing import Placing
from models.loading.quantised import quantisation, quantised_as
from models.loading.spread import spread
from models.sites import Site
from models.tokens import token_mask
from records.open_model import open_model
from records.options import ModelOptions
from tasks.errors import UserError
from tests.conftest import make_examples, tiny_config
from tests.gpu.places import CUDA, Place
from tests.interventions.engines.engine_runs import last_columns, pair
from tuning.config import check_held
from tuning.cost.measure import synthetic_batch
from tuning.plan.apply import applied, trained_parameters
from tuning.plan.plan import LayerPlan, Lora
from tuning.plan.resolve import resolve
from tuning.training.loss import loss_of

loading = importlib.import_module("models.loading.load")

KINDS = ("4bit", "8bit")
GB = 2**30


def even_config() -> LlavaConfig:
    """Widths that are multiples of the 64 numbers which share a 4-bit scale."""
    vision = CLIPVisionConfig(
        image_size=28, patch_size=7, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=None,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=600, image_seq_length=16)


def size(module: nn.Module) -> int:
    """Bytes of a module's weights in float32."""
    return sum(p.numel() * 4 for p in module.parameters())


def patched(llava: Llava) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the image patched before every block by both engines, and the largest difference of the two."""
    pairs = pair(llava, 2, n_pictures=(1,))
    image = token_mask(pairs[0], "image", llava, make_examples(2)).to(llava.device)
    sites = [Site("language_model", layer, "resid_pre") for layer in range(llava.n_layers)]
    cells = [Cell((Write(site, image, OTHER),)) for site in sites]
    found = []
    for engine in ("incremental", "full"):
        base = prepare_base(llava, *pairs, readout=last_columns(pairs[0]).to(llava.device), engine=engine)  # type: ignore[arg-type]
        found.append(torch.stack(run_cells(llava, base, cells, lambda logits: logits, engine=engine)))  # type: ignore[arg-type]
    return found[0], (found[0] - found[1]).abs().max()


@pytest.mark.parametrize("place", [pytest.param(Place("cpu", torch.float32), id="cpu"), *CUDA])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_captures_patches_and_scores_close_to_the_plain_one(kind: Any, place: Place) -> None:
    pytest.importorskip("bitsandbytes")
    plain, narrow = (
        load(even_config(), device=place.device, dtype=place.dtype, quantize=q, validate=False) for q in (None, kind)
    )
    assert (quantised_as(plain.model), quantised_as(narrow.model)) == (None, kind)
    block = narrow.blocks[1]
    assert not block.mlp.up_proj.weight.is_floating_point()  # type: ignore[union-attr]
    assert narrow.model.lm_head.weight.dtype == narrow.dtype == place.dtype
    assert narrow.weight_hash != plain.weight_hash
    inputs = prepare(plain, make_examples(2))
    got, expected = narrow.logits(inputs), plain.logits(inputs)
    distance = float((got - expected).abs().max() / expected.abs().max())
    # 4 bits have 16 levels, 8 bits 255: through three blocks of random weights errors stay well below the values.
    assert 0 < distance < (0.6 if kind == "4bit" else 0.1)
    values, difference = patched(narrow)
    assert float(difference) < 0.05 * float(values.abs().max())
    again = load(even_config(), device=place.device, dtype=place.dtype, quantize=kind, validate=False)
    assert torch.equal(again.logits(inputs), got)


def test_without_bitsandbytes_quantised_loading_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.loading.quantised.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        load("random:tiny", quantize="4bit")
    with pytest.raises(UserError, match="quantize must be 4bit or 8bit, got '2bit'"):
        quantisation("2bit", torch.float32)
    with pytest.raises(UserError, match="device-map must be auto"):
        Placing(torch.device("cpu"), "sdpa", None, "cuda").check()
    with pytest.raises(UserError, match="device-map must be left out with quantize"):
        load("random:tiny", quantize="4bit", device_map="auto")


def test_a_model_whose_blocks_wait_outside_the_device_computes_the_same(tmp_path: Path) -> None:
    plain, waiting = (load(tiny_config(), validate=False) for _ in range(2))
    words = plain.model.get_input_embeddings()
    below, block = sum(map(size, (plain.vision_tower, plain.projector, words))), size(plain.blocks[0])
    # accelerate leaves room for the largest layer that waits, the head, which is as large as the embeddings
    room = below + block + block // 2 + size(words)
    model = spread(waiting.model, "cpu", memory={"cpu": room, "disk": GB}, folder=tmp_path)
    there = [all(p.device.type == "cpu" for p in block.parameters()) for block in waiting.blocks]
    assert there == [True, False, False]  # two blocks wait on the disk
    assert model is waiting.model
    inputs = prepare(plain, make_examples(3))
    assert torch.equal(waiting.logits(inputs), plain.logits(inputs))
    for tokens in ("image", "last"):
        ours, theirs = (one.capture(inputs, "resid_post", tokens=tokens, pool="mean") for one in (waiting, plain))
        assert all(torch.equal(ours[site], theirs[site]) for site in theirs)
    assert waiting.generate(inputs, max_new_tokens=3) == plain.generate(inputs, max_new_tokens=3)
    values, difference = patched(waiting)
    assert torch.equal(values, patched(plain)[0])
    assert float(difference) < 1e-4


def test_too_little_memory_is_an_error() -> None:
    with pytest.raises(UserError, match="device-map must find room"):
        spread(load(tiny_config(), validate=False).model, "cpu", memory={"cpu": 300_000, "disk": GB})


def test_options_reach_the_loader_and_a_model_in_memory_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    llava = open_model(ModelOptions("random:tiny", device_map="auto"), device="cpu", seed=0)
    assert torch.equal(
        llava.logits(prepare(llava, make_examples(1))),
        (plain := load("random:tiny")).logits(prepare(plain, make_examples(1))),
    )
    with pytest.raises(UserError, match="got quantize 'None' where they have '4bit'"):
        open_model(ModelOptions("random:tiny", quantize="4bit"), device="cpu", seed=0, given=llava)


def test_training_takes_quantised_weights_with_lora_alone() -> None:
    check_held(ModelOptions(quantize="4bit"), method="lora")
    for method in ("full", "lisa"):
        with pytest.raises(UserError, match=f"quantize must have LoRA factors to train, got --method {method}"):
            check_held(ModelOptions(quantize="4bit"), method=method)
    with pytest.raises(UserError, match="device-map must be left out in training"):
        check_held(ModelOptions(device_map="auto"), method="lora")


@pytest.mark.parametrize("place", [pytest.param(Place("cpu", torch.float32), id="cpu"), *CUDA])
@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_on_quantised_blocks_and_leaves_them_as_they_were(kind: Any, place: Place) -> None:
    pytest.importorskip("bitsandbytes")
    llava = load(even_config(), device=place.device, dtype=place.dtype, quantize=kind, validate=False)
    resolved = resolve(LayerPlan("1", (), "lora", Lora(4, 8, 0.0)), llava)
    batch = synthetic_batch(llava, rows=2, text_tokens=12)
    before = loss_of(llava, batch).item()
    with applied(llava, resolved):
        trained = trained_parameters(llava)
        assert len(trained) == 2 * 7 and all(".layers.1." in name for name in trained)
        optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2), list[float]()
        for _ in range(4):
            loss = loss_of(llava, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[0] == pytest.approx(before, rel=1e-2)  # the factors begin at no change
    assert losses[-1] < losses[0] - 0.05
    assert not llava.blocks[1].mlp.up_proj.weight.is_floating_point()  # type: ignore[union-attr]
    assert loss_of(llava, batch).item() == pytest.approx(before, rel=1e-3)  # without the factors


def test_weights_drawn_in_place_equal_those_drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config, state = tiny_config(), torch.random.get_rng_state()
    drawn = loading._drawn_in_place(
        config, loading._shapes(config), seed=3, dtype=torch.bfloat16, device="cpu", attn="sdpa"
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    wanted = load(tiny_config(), seed=3, dtype="bfloat16", validate=False).model
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(drawn, kind)()), dict(getattr(wanted, kind)())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)
    assert drawn.config._attn_implementation == "sdpa"
