"""Folders of LoRA factors are models: their base with the factors merged, as PEFT merges them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration

from models.loading.load import load
from models.loading.locate import Located
from tasks.errors import UserError


def factors(folder: Path, base: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """Write random factors with PEFT; returns the weights that PEFT merges."""
    from peft import LoraConfig, get_peft_model

    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    chosen = {"r": 4, "lora_alpha": 6, "target_modules": r".*language_model.*\.(q_proj|down_proj)"} | settings
    adapted: Any = get_peft_model(model, LoraConfig(**chosen))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(folder)
    return {k: v.clone() for k, v in adapted.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"modules_to_save": ["linear_1"]}])
def test_factors_are_merged_as_peft_merges_them(checkpoint: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    merged = factors(tmp_path / "factors", checkpoint, **settings)
    described = json.loads((tmp_path / "factors" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(checkpoint)
    llava, base = load(tmp_path / "factors"), load(checkpoint)
    assert llava.id == "factors" and llava.weight_hash != base.weight_hash
    before = base.model.state_dict()
    changed = 0
    for name, tensor in llava.model.state_dict().items():
        assert_close(tensor, merged[name], atol=1e-6, rtol=1e-5)
        changed += not torch.equal(tensor, before[name])
    assert changed == 6 + 2 * len(settings.get("modules_to_save", []))
    assert load(tmp_path / "factors", device="meta").n_layers == llava.n_layers
    described["lora_alpha"] = 7
    (tmp_path / "factors" / "adapter_config.json").write_text(json.dumps(described))
    assert load(tmp_path / "factors").weight_hash != llava.weight_hash


def test_small_changes_of_a_16_bit_base_are_kept_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    halved = tmp_path / "halved"
    shutil.copytree(checkpoint, halved)
    weights = load_file(halved / "model.safetensors")
    save_file(
        {k: v.to(torch.bfloat16) for k, v in weights.items()}, halved / "model.safetensors", metadata={"format": "pt"}
    )
    merged = factors(tmp_path / "factors", halved, lora_alpha=1e-3)
    llava, base = load(tmp_path / "factors"), load(halved)
    name = next(key for key in merged if key.endswith("layers.0.self_attn.q_proj.weight") and "language" in key)
    ours = llava.model.state_dict()[name]
    assert ours.dtype == torch.float32
    assert not torch.equal(ours, base.model.state_dict()[name])
    assert_close(ours, merged[name], atol=1e-8, rtol=1e-6)


def test_the_base_has_the_revision_that_the_factors_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors(tmp_path / "factors", checkpoint)
    path = tmp_path / "factors" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "v1"}))
    asked = []

    def locate(name: str, revision: str | None = None, **options: Any) -> Located:
        asked.append((name, revision))
        return Located(Path(name), name, None)

    monkeypatch.setattr(sys.modules[load.__module__], "locate", locate)
    load(tmp_path / "factors")
    assert asked[1:] == [(str(checkpoint), "v1")]


def test_the_base_can_be_given(checkpoint: Path, tmp_path: Path) -> None:
    factors(tmp_path / "factors", checkpoint)
    path = tmp_path / "factors" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "elsewhere"}))
    with pytest.raises(UserError, match="must name the base model of the LoRA factors in factors, got 'elsewhere'"):
        load(tmp_path / "factors")
    assert load(tmp_path / "factors", base=checkpoint).n_layers == 3
    with pytest.raises(UserError, match="base is for original stage-1 folders and LoRA factors"):
        load(checkpoint, base=checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type of an adapter must be 'LORA', got 'LOHA'"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights of an adapter must leave its base unchanged"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must name the base"),
    ],
)
def test_other_adapters_are_refused(checkpoint: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    factors(tmp_path / "factors", checkpoint)
    path = tmp_path / "factors" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "factors")
    assert len(str(caught.value)) < 400


def test_factors_that_do_not_fit_and_folders_with_both_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    factors(tmp_path / "factors", checkpoint)
    both = Path(shutil.copytree(checkpoint, tmp_path / "both"))
    for path in (tmp_path / "factors").glob("adapter_*"):
        shutil.copy(path, both)
    with pytest.raises(UserError, match="either whole weights or LoRA factors, got both in both"):
        load(both)
    path = tmp_path / "factors" / "adapter_model.safetensors"
    right = load_file(path)
    first = next(key for key in right if "lora_A" in key)
    for wrong in (
        {**right, first: torch.zeros(4, 5)},
        {k: v for k, v in right.items() if k != first},
        {**right, "base_model.model.model.elsewhere.lora_A.weight": torch.zeros(4, 48)},
        {**right, "base_model.model.lm_head.weight": torch.zeros(3, 48)},
    ):
        save_file(wrong, path)
        with pytest.raises(UserError, match="LoRA factors must fit their base model"):
            load(tmp_path / "factors")
    path.unlink()
    with pytest.raises(UserError, match=r"must hold the LoRA factors adapter_model\.safetensors, got none"):
        load(tmp_path / "factors")


def test_factors_on_factors_are_merged_in_turn(checkpoint: Path, tmp_path: Path) -> None:
    first = factors(tmp_path / "first", checkpoint)
    merged = shutil.copytree(checkpoint, tmp_path / "merged")
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.load_state_dict(first)
    model.save_pretrained(merged)
    both = factors(tmp_path / "second", merged, r=2)
    path = tmp_path / "second" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "first")}))
    llava = load(tmp_path / "second")
    for name, tensor in llava.model.state_dict().items():
        assert_close(tensor, both[name], atol=1e-6, rtol=1e-5)
    assert llava.weight_hash != load(tmp_path / "first").weight_hash


def test_factors_that_are_their_own_base_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    factors(tmp_path / "loop", checkpoint)
    path = tmp_path / "loop" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "loop")}))
    with pytest.raises(UserError, match="must lead to a whole model, got more than 8 folders"):
        load(tmp_path / "loop")


def test_factors_with_a_tokenizer_alone_keep_the_pictures_of_their_base(checkpoint: Path, tmp_path: Path) -> None:
    factors(tmp_path / "factors", checkpoint)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, tmp_path / "factors" / name)
    ours, base = load(tmp_path / "factors"), load(checkpoint)
    assert ours.processor.image_processor.to_dict() == base.processor.image_processor.to_dict()
    assert ours.tokenizer.get_vocab() == base.tokenizer.get_vocab()


def test_a_hostile_tokenizer_beside_factors_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    factors(tmp_path / "factors", checkpoint)
    (tmp_path / "factors" / "tokenizer_config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    with pytest.raises(UserError, match=r"tokenizer_config\.json must be readable, got its values are nested"):
        load(tmp_path / "factors")
