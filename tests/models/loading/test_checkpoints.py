"""Checkpoints: both key layouts load alike, and whatever does not fit is refused with the key that does not."""

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import LlavaConfig, LlavaForConditionalGeneration

from models.llava import Llava
from models.loading.checkpoints import _read_bin, random_weights, weight_files
from models.loading.load import load
from models.loading.processors import offline_processor
from tasks.errors import UserError
from tests.conftest import tiny_config


@pytest.fixture(scope="session")
def saved(llava: Llava, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as transformers saves it."""
    folder = tmp_path_factory.mktemp("saved") / "tiny-llava"
    llava.model.save_pretrained(folder)
    llava.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llava"))


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)


def _to_new_layout(key: str) -> str:
    """What transformers 4.52 and later have in memory and may save."""
    key = key.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "language_model.")
    key = key.replace("vision_tower.vision_model.", "vision_tower.")
    return key if key.startswith(("lm_head", "model.")) else f"model.{key}"


def _to_old_layout(key: str) -> str:
    """What llava-hf checkpoints on the hub hold."""
    key = _to_new_layout(key)
    key = key.replace("model.language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.")
    return key.replace("model.vision_tower.", "vision_tower.vision_model.").replace(
        "model.multi_modal_projector", "multi_modal_projector"
    )


def _logits(llava: Llava) -> Tensor:
    ids = torch.tensor([[0, *[llava.image_token_id] * llava.n_image_tokens, 5, 6]])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, llava.image_size, llava.image_size, generator=generator)
    with torch.inference_mode():
        logits: Tensor = llava.model(input_ids=ids, pixel_values=pixels).logits
    return logits


@pytest.mark.parametrize("layout", [_to_old_layout, _to_new_layout])
def test_both_key_layouts_load_and_compute_the_same(llava: Llava, copied: Path, layout: Callable[[str], str]) -> None:
    _rewrite(copied, lambda weights: {layout(key): tensor for key, tensor in weights.items()})
    keys = load_file(copied / "model.safetensors").keys()
    prefix = "language_model.model.layers.0" if layout is _to_old_layout else "model.language_model.layers.0"
    assert any(key.startswith(prefix) for key in keys)
    assert_close(_logits(load(copied)), _logits(llava), rtol=0, atol=0)  # the same weights in the same code


def test_shards_and_a_folder_given_as_text_load_alike(llava: Llava, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    llava.model.save_pretrained(copied, max_shard_size="100KB")
    assert len(list(copied.glob("*.safetensors"))) > 1
    assert_close(_logits(load(str(copied))), _logits(llava), rtol=0, atol=0)
    first = sorted(copied.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(UserError, match=f"must hold every file of its index, got no '{first.name}'"):
        load(copied)


def test_the_weight_hash_follows_the_weights_and_not_the_folder(saved: Path, copied: Path) -> None:
    original = load(saved).weight_hash
    assert load(copied).weight_hash == original
    _rewrite(copied, lambda weights: {k: v + 1e-3 if k.endswith("lm_head.weight") else v for k, v in weights.items()})
    assert load(copied).weight_hash != original


def test_a_missing_key_is_refused_by_name(copied: Path) -> None:
    gone: list[str] = []

    def drop(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        gone.append(next(key for key in weights if "layers.1.mlp.up_proj" in key))
        return {key: tensor for key, tensor in weights.items() if key != gone[0]}

    _rewrite(copied, drop)
    with pytest.raises(UserError, match=r"got missing 'model\.language_model\.layers\.1\.mlp\.up_proj\.weight'"):
        load(copied)


def test_an_unexpected_key_is_refused_by_name(copied: Path) -> None:
    _rewrite(copied, lambda weights: {**weights, "model.mm_projector.0.weight": torch.zeros(2)})
    with pytest.raises(UserError, match=r"got unexpected 'model\.mm_projector\.0\.weight'"):
        load(copied)


def test_a_misshapen_key_is_refused_by_name(copied: Path) -> None:
    _rewrite(copied, lambda ws: {k: v[:, :-1].contiguous() if "lm_head" in k else v for k, v in ws.items()})
    with pytest.raises(UserError, match=r"lm_head\.weight' must have shape \(640, 48\), got \(640, 47\)"):
        load(copied)


def test_a_truncated_file_is_refused(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint file must be complete, got model\.safetensors"):
        load(copied)


def test_plain_tensors_in_a_bin_file_load(llava: Llava, copied: Path) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert_close(_logits(load(copied)), _logits(llava), rtol=0, atol=0)


class _Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[Path, str]]:
        return Path.write_text, (self.path, "run")


def test_a_bin_file_with_code_is_refused_and_not_run(copied: Path, tmp_path: Path) -> None:
    (copied / "model.safetensors").unlink()
    trap = tmp_path / "trap"
    torch.save({"lm_head.weight": _Trap(trap)}, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"contain only tensors, got .* other objects in pytorch_model\.bin"):
        load(copied)
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Trap(trap)))  # the trap works: plain unpickling does run it
    assert trap.exists()


def test_a_bin_file_of_something_else_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="contain only tensors"):
        load(copied)


def test_a_folder_without_weights_config_or_tokenizer_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="must hold tokenizer.json or tokenizer.model, got neither"):
        load(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"must hold \*.safetensors"):
        load(copied)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"must hold config\.json, got none in 'empty'"):
        load(empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_next"}, "must be LLaVA-1.5"),
        (
            {"text_config": {"model_type": "mistral"}},
            "must be LLaVA-1.5.*got llava with clip_vision_model with mistral",
        ),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "got llava with siglip_vision_model with llama"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer must be one layer"),
        ({"image_seq_length": 15}, r"image_seq_length must be 16 \(the patch grid \(4, 4\)\), got 15"),
        ({"image_token_index": 7}, "tokenizer must give <image> the id 7, got 600"),
    ],
)
def test_another_architecture_is_refused(copied: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((copied / "config.json").read_text())
    config.pop("image_token_id", None)
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load(copied)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "num_hidden_layers", 10**6),
        ("text_config", "num_hidden_layers", 0),
        ("text_config", "hidden_size", -48),
        ("text_config", "vocab_size", 10**12),
        ("text_config", "head_dim", 7),
        ("text_config", "num_key_value_heads", 0),
        ("text_config", "hidden_act", "none-such"),
        ("text_config", "rms_norm_eps", 0.0),
        ("text_config", "attention_dropout", 2.0),
        ("text_config", "pad_token_id", 641),
        ("text_config", "rope_parameters", {"rope_type": "none-such", "rope_theta": 1e4}),
        ("text_config", "rope_parameters", {"rope_type": "default", "rope_theta": 0.0}),
        ("vision_config", "num_attention_heads", 0),
        ("vision_config", "patch_size", 0),
        ("vision_config", "patch_size", 29),
        ("vision_config", "image_size", [28, 28]),
        ("vision_config", "image_size", -28),
        ("vision_config", "num_channels", 1),
        ("vision_config", "hidden_act", "none-such"),
        (None, "projector_hidden_act", "none-such"),
        (None, "vision_feature_layer", 0),
        (None, "vision_feature_layer", 17),
        (None, "image_token_index", 10**9),
        (None, "image_token_index", -1),
        (None, "model_type", 3),
        (None, "text_config", 3),
        (None, "vision_config", []),
        (None, "transformers_weights", "other.safetensors"),
    ],
)
def test_a_config_out_of_range_ends_in_one_sentence(copied: Path, part: str | None, key: str, value: object) -> None:
    described = json.loads((copied / "config.json").read_text())
    described.pop("image_token_id", None)
    (described[part] if part else described)[key] = value
    (copied / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="must ") as caught:
        load(copied)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"a":' * 50_000])
def test_json_files_that_are_no_mapping_are_named(copied: Path, name: str, content: str) -> None:
    (copied / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} must "):
        load(copied)


def test_a_longest_text_that_is_no_number_is_refused(copied: Path) -> None:
    described = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps({**described, "model_max_length": "long"}))
    with pytest.raises(UserError, match="tokenizer must be readable, got model_max_length 'long'"):
        load(copied)


def test_a_huge_json_file_is_not_read(copied: Path) -> None:
    with (copied / "tokenizer_config.json").open("ab") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match="tokenizer_config.json must have at most"):
        load(copied)


def test_a_config_cannot_name_an_attention_kernel(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads((copied / "config.json").read_text())
    described["attn_implementation"] = "someone/kernel"
    for part in ("text_config", "vision_config"):
        described[part]["attn_implementation"] = described[part]["_attn_implementation"] = "someone/kernel"
    (copied / "config.json").write_text(json.dumps(described))
    asked: list[object] = []
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *a, **k: asked.append(a))
    config = LlavaConfig.from_pretrained(copied)
    with contextlib.suppress(Exception), torch.device("meta"):
        LlavaForConditionalGeneration(config)
    assert asked  # plain transformers asks for it
    asked.clear()
    for device in ("cpu", "meta"):
        assert load(copied, device=device, attn="eager").attention == "eager"
    assert not asked


def _change_tokenizer(folder: Path) -> None:
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["merges"] = described["model"]["merges"][:50]
    (folder / "tokenizer.json").write_text(json.dumps(described))


def _change_pictures(folder: Path) -> None:
    described = json.loads((folder / "processor_config.json").read_text())
    described["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    (folder / "processor_config.json").write_text(json.dumps(described))


def _change_config(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["text_config"]["rope_parameters"]["rope_theta"] = 5e5
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize("change", [_change_tokenizer, _change_pictures, _change_config])
def test_config_tokenizer_and_picture_processor_belong_to_the_identity(
    saved: Path, copied: Path, change: Callable[[Path], None]
) -> None:
    described = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps({**described, "transformers_version": "4.36.0", "_name_or_path": "x"})
    )
    assert load(copied).weight_hash == load(saved).weight_hash
    change(copied)
    assert load(copied).weight_hash != load(saved).weight_hash


def _put(path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, path, metadata={"format": "pt"})


def test_of_two_sets_of_weights_the_one_of_transformers_is_read(llava: Llava, copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    older = {key: tensor * 0.5 for key, tensor in weights.items()}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = {key: names[number % 2] for number, key in enumerate(sorted(older))}
    for name in names:
        _put(copied / name, {key: older[key] for key in older if place[key] == name})
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    for name in ("model_backup.safetensors", "model.fp16.safetensors", "zzz.safetensors"):
        _put(copied / name, older)
    torch.save(older, copied / "pytorch_model.bin")
    assert_close(_logits(load(copied)), _logits(llava), rtol=0, atol=0)
    (copied / "model.safetensors").unlink()
    assert weight_files(copied) == [copied / name for name in names]
    (copied / "model.safetensors.index.json").unlink()
    assert weight_files(copied) == [copied / "pytorch_model.bin"]
    (copied / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"must hold one set of weights, got 'model', 'model.fp16', 'model_backup'"):
        load(copied)
    for name in ("model_backup.safetensors", "model.fp16.safetensors", "zzz.safetensors"):
        (copied / name).unlink()
    assert weight_files(copied) == [copied / name for name in names]


@pytest.mark.parametrize("part", [None, "text_config"])
def test_a_quantisation_left_over_in_the_config_of_plain_weights_is_passed_over(
    llava: Llava, copied: Path, part: str | None
) -> None:
    described = json.loads((copied / "config.json").read_text())
    (described[part] if part else described)["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (copied / "config.json").write_text(json.dumps(described))
    assert_close(_logits(load(copied)), _logits(llava), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change", [{"lm_head.weight": torch.int8}, {"lm_head.weight": torch.float8_e4m3fn}, "lm_head.SCB"]
)
def test_quantised_weights_are_refused_by_that_word(copied: Path, change: dict[str, torch.dtype] | str) -> None:
    if isinstance(change, str):
        _rewrite(copied, lambda weights: {**weights, change: torch.ones(4)})
    else:
        _rewrite(copied, lambda weights: {k: v.to(change.get(k, v.dtype)) for k, v in weights.items()})
    with pytest.raises(UserError, match="got quantised ones"):
        load(copied)


def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    shapes = {"model.language_model.a.weight": torch.Size([64, 256]), "lm_head.weight": torch.Size([8, 256])}
    weights = dict(random_weights(shapes, seed=0, dtype=torch.float32))
    alone = dict(random_weights(dict([list(shapes.items())[1]]), seed=0, dtype=torch.float32))
    assert_close(alone["lm_head.weight"], weights["lm_head.weight"], rtol=0, atol=0)
    other = dict(random_weights(shapes, seed=1, dtype=torch.float32))
    assert not torch.equal(other["lm_head.weight"], weights["lm_head.weight"])
    # 16,384 draws: the standard deviation is known to 0.6 %, five times that is allowed
    assert abs(float(weights["model.language_model.a.weight"].std()) * 16 - 1) < 0.03


def test_the_offline_tokenizer_writes_any_text_and_one_image_token() -> None:
    tokenizer = offline_processor(tiny_config()).tokenizer
    text = "Is the <image> a Käfer? 猫"
    ids = tokenizer(text).input_ids
    assert ids.count(600) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>").replace(" <image>", "<image>") in (
        text.replace(" <image>", "<image>"),
        text,
    )
    config = tiny_config()
    config.text_config.vocab_size = 200
    with pytest.raises(ValueError, match="vocab_size must be at least 260"):
        offline_processor(config)


@pytest.mark.parametrize("content", [b"hello", b".", b"}u.", b""])
def test_a_bin_that_is_no_pickle_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match="contain only tensors"):
        _read_bin(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    "index",
    ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": "../model.safetensors"}}'],
)
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="model.safetensors.index.json must|every file of its index"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # transformers does not read the index then
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
