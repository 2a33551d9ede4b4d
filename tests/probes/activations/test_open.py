"""Stored activations are read as they were written, aligned with the examples."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from probes.activations.open import ActivationSet, open_activations
from probes.activations.write import write_activations
from tasks.errors import UserError
from tests.damage import flip

SITE, LAST = "blocks.0.hook_resid_post", "blocks.11.hook_resid_post"


def pooled(folder: Path, n: int = 7) -> tuple[ActivationSet, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    arrays = {
        "image": {LAST: {"image": x, "last": x + 1}, SITE: {"image": -x, "last": x * 2}},
        "caption": {SITE: {"caption": x + 3}, LAST: {"caption": x * x}},
    }
    return write_activations(folder, arrays, pd.DataFrame({"id": [f"e{i}" for i in range(n)]}), shard=3), x


def test_arrays_come_back_from_several_shards_in_the_order_of_the_examples(tmp_path: Path) -> None:
    stored, x = pooled(tmp_path / "run")
    assert len(list((tmp_path / "run" / "activations" / SITE).glob("*.safetensors"))) == 3
    assert stored.sites == (SITE, LAST)  # by depth, not by name
    assert stored.tokens == ("image", "last", "caption") and stored.conditions == ("image", "caption")
    np.testing.assert_array_equal(stored.numpy(LAST, "last"), x + 1)
    np.testing.assert_array_equal(stored.numpy(LAST, "caption", "caption"), x * x)
    assert stored.examples["id"].tolist() == [f"e{i}" for i in range(7)]
    table = stored.to_pandas(SITE, "image")
    assert table["id"].tolist() == stored.examples["id"].tolist()
    np.testing.assert_array_equal(table[list(range(5))], -x)


def test_the_stored_type_is_kept_by_tensor_and_becomes_float32_by_numpy(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    stored = write_activations(tmp_path / "run", {"image": {SITE: {"last": x}}}, pd.DataFrame({"id": ["a", "b"]}))
    assert stored.tensor(SITE, "last").dtype == torch.float16
    assert stored.numpy(SITE, "last").dtype == np.float32


def test_without_pooling_every_token_has_its_place(tmp_path: Path) -> None:
    places = pd.DataFrame(
        {"example": [0, 0, 1, 2, 2], "position": [5, 6, 5, 5, 7], "row": [0, 0, 1, 0, 1], "column": 1}
    )
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    stored = write_activations(
        tmp_path / "run", {"image": {SITE: {"image": x}}}, pd.DataFrame({"id": ["a", "b", "c"]}),
        token_rows={"image": {"image": places}}, shard=2,
    )  # fmt: skip
    assert stored.pool == "none" and len(stored) == 3
    np.testing.assert_array_equal(stored.numpy(SITE, "image"), x)
    pd.testing.assert_frame_equal(stored.token_rows("image"), places, check_dtype=False)
    assert stored.to_pandas(SITE, "image")["id"].tolist() == ["a", "a", "b", "c", "c"]


def test_a_hugging_face_data_set_has_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    stored, x = pooled(tmp_path / "run")
    data = stored.to_dataset(SITE, "image")
    assert list(data["id"]) == stored.examples["id"].tolist()
    np.testing.assert_array_equal(np.asarray(data["activation"], dtype=np.float32), -x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SITE, "question"), "tokens must be one that the run .* has, got 'question'. It has: image, last."),
        ((SITE, "image", "caption"), "tokens must be .*, got 'image'. It has: caption."),
        ((SITE, "image", "sound"), "condition must be .*, got 'sound'. It has: image, caption."),
        (("blocks.3.hook_resid_post", "image"), "site must be one that the run"),
    ],
)
def test_what_a_run_lacks_is_named_with_what_it_has(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    stored, _ = pooled(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        stored.numpy(*arguments)


def test_a_run_without_all_its_shards_or_files_is_an_error(tmp_path: Path) -> None:
    pooled(tmp_path / "run")
    with pytest.raises(UserError, match="must be the folder of a run"):
        open_activations(tmp_path)
    for condition in ("activations", "caption_activations"):
        (tmp_path / "run" / condition / LAST / "00001.safetensors").unlink()
    with pytest.raises(UserError, match="must be complete, got 4 of 7 examples"):
        open_activations(tmp_path / "run")
    for manifest in ([], {}, {"kind": "laccolith patch-sweep"}):
        (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="must have a manifest"):
            open_activations(tmp_path / "run")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    stored, _ = pooled(tmp_path / "run")
    (tmp_path / "run" / "activations" / SITE / "00000.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"00000.safetensors must be as it was written, got changed bytes"):
        stored.numpy(SITE, "image")


def test_arrays_of_another_length_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="arrays must have 3 rows"):
        write_activations(
            tmp_path / "run", {"image": {SITE: {"last": np.ones((2, 2), np.float32)}}}, pd.DataFrame({"id": [0, 1, 2]})
        )


@pytest.mark.parametrize("name", [f"activations/{SITE}/00001.safetensors", "examples.parquet"])
def test_a_changed_file_is_refused_when_it_is_read(name: str, tmp_path: Path) -> None:
    stored, _ = pooled(tmp_path / "run")
    flip(tmp_path / "run" / name, -3)
    with pytest.raises(UserError, match=r"must be as it was written, got changed bytes"):
        open_activations(tmp_path / "run").numpy(SITE, "last")
    if name.startswith("activations"):
        with pytest.raises(UserError, match=r"00001\.safetensors must be as it was written"):
            stored.numpy(SITE, "last")
        assert len(stored.numpy(LAST, "last")) == 7
