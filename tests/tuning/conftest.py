"""Fixtures of the tuning tests: a fresh tiny model for each test that changes one, and small data."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from models.llava import Llava
from models.loading.load import load
from tests.conftest import tiny_config
from tuning.data.prompt_format import PromptFormat
from tuning.data.samples import Samples, survey
from tuning.data.scene_mix import SceneMix
from tuning.data.sources import Source


@pytest.fixture
def fresh() -> Llava:
    """A tiny LLaVA that the test may change."""
    return load(tiny_config(grouped=True), seed=0, validate=False)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder."""
    folder = tmp_path_factory.mktemp("base")
    llava = load(tiny_config(grouped=True), seed=0, validate=False)
    llava.model.save_pretrained(folder)
    llava.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mix() -> SceneMix:
    """Eight scenes with two questions each, some about a caption in words."""
    return SceneMix(8, questions=2)


def samples_of(llava: Llava, source: Source, prompt_format: PromptFormat | None = None) -> Samples:
    """All samples of a source, surveyed."""
    how = prompt_format or PromptFormat()
    return Samples(llava, source, survey(llava, source, how), how)


LlavaRows = Callable[[Iterable[dict[str, object]]], Path]


@pytest.fixture
def llava_json(tmp_path: Path) -> LlavaRows:
    """Writes rows in LLaVA's layout, with the pictures they name."""

    def write(rows: Iterable[dict[str, object]]) -> Path:
        listed = list(rows)
        for row in listed:
            name = row.get("image")
            if isinstance(name, str) and name and not name.startswith("missing"):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (30, 20), (200, 30, 30)).save(tmp_path / name)
        path = tmp_path / "mix.json"
        path.write_text(json.dumps(listed, indent=1, ensure_ascii=False), encoding="utf-8")
        return path

    return write


def turns(*texts: str) -> list[dict[str, str]]:
    """Alternating words of human and gpt, as LLaVA writes them."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
