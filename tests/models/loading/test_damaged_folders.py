"""Folders that this project wrote are checked when they are loaded: the composed checkpoint, and tuned models."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.llava import Llava
from models.loading import smol
from models.loading.load import load
from tasks.checksums import DamagedFileError, is_whole_folder, record_files
from tasks.errors import UserError
from tests.damage import flip


def test_a_damaged_composed_checkpoint_is_written_anew(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[int] = []

    def assemble(*parts: object) -> smol.Composed:
        composed.append(1)
        return smol.Composed(llava.model, llava.processor)

    monkeypatch.setenv("LACCOLITH_CACHE", str(tmp_path))
    monkeypatch.setattr(smol, "assemble", assemble)
    monkeypatch.setattr(smol, "language_model_file", lambda: None)
    monkeypatch.setattr(smol, "load_language_model", lambda: SimpleNamespace(model=None))
    monkeypatch.setattr(smol, "merge_lora", lambda *parts: None)
    folder = smol.compose("smol")
    before = (folder / "model.safetensors").read_bytes()
    assert smol.compose("smol") == folder and len(composed) == 1
    for damage in (flip, Path.unlink):
        damage(folder / "model.safetensors")
        with pytest.warns(UserWarning, match="is damaged: it is written anew"):
            assert smol.compose("smol") == folder
        assert (folder / "model.safetensors").read_bytes() == before and is_whole_folder(folder)
    assert len(composed) == 3
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_cache_that_cannot_be_written_is_one_sentence_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LACCOLITH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(smol, "language_model_file", lambda: None)
    monkeypatch.setattr(smol, "load_language_model", lambda: pytest.fail("the model was read first"))
    with pytest.raises(UserError, match=r"cache must be a writable folder .* Set LACCOLITH_CACHE"):
        smol.compose("smol")


def test_a_tuned_folder_that_is_unfinished_or_damaged_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tuned = shutil.copytree(checkpoint, tmp_path / "tuned")
    record_files(tuned)
    manifest = {"kind": "laccolith layerwise-finetune", "finished": None}
    (tuned / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="must hold a finished run, got one that is not in tuned"):
        load(tuned)
    (tuned / "manifest.json").write_text(json.dumps({**manifest, "finished": "2025-01-01T00:00:00Z"}))
    assert load(tuned).weight_hash == load(checkpoint).weight_hash
    flip(tuned / "model.safetensors")
    with pytest.raises(DamagedFileError, match=r"model\.safetensors must be as it was written.*in tuned"):
        load(tuned)
