"""Checkpoints: both key layouts load alike, and whatever does not fit is refused with the key that does not."""

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
    with pytest.raises(UserError, match=r"plain tensors only, got something else in pytorch_model\.bin"):
        load(copied)
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Trap(trap)))  # the trap works: plain unpickling does run it
    assert trap.exists()


def test_a_bin_file_of_something_else_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    torch.save([torch.zeros(2)], copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="plain tensors only"):
        load(copied)


def test_a_folder_without_weights_config_or_tokenizer_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="must hold its tokenizer and preprocessor files"):
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
    with pytest.raises(UserError, match="plain tensors only"):
        _read_bin(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("index", ["", "{}", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="must hold a weight_map"):
        weight_files(tmp_path)
