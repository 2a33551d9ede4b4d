"""Every row of what a user can get wrong: one sentence on stderr, status 2, and no run that looks complete."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.probes.conftest import Outcome, Photos, write_rows

Sweep = Callable[..., Outcome]


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def refused(outcome: Outcome, *phrases: str, run: Path | None = None) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err  # one sentence, no traceback
    assert outcome.err.startswith("probe-sweep: ")
    for phrase in phrases:
        assert phrase in outcome.err
    if run is not None:
        assert not (run / "results.parquet").exists()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("records.open_model.load", fail)


def tiles(photos: Photos, tmp_path: Path, change: Callable[[list[dict[str, Any]], Path], None]) -> list[object]:
    """Arguments for a copy of the photos in which something is wrong."""
    folder = tmp_path / "photos"
    shutil.copytree(photos.folder, folder)
    rows = [dict(row) for row in photos.rows]
    change(rows, folder)
    return ["--data", write_rows(folder / "tiles.jsonl", rows), "--target", "photo", "--folds", 2]


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "text": lambda path: path.write_text("not a picture"),
    "bomb": bomb,
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("how", BROKEN)
def test_picture_that_cannot_be_read_is_named(sweep: Sweep, photos: Photos, tmp_path: Path, how: str) -> None:
    arguments = tiles(photos, tmp_path, lambda rows, folder: BROKEN[how](folder / "temple-3.png") and None)
    refused(sweep(*arguments), "temple-3.png", "--skip-bad", run=tmp_path / "run")


def test_skip_bad_counts_and_lists_the_pictures(sweep: Sweep, photos: Photos, tmp_path: Path) -> None:
    def spoil(rows: list[dict[str, Any]], folder: Path) -> None:
        (folder / "temple-3.png").unlink()
        (folder / "flower-1.png").write_text("not a picture")

    arguments = tiles(photos, tmp_path, spoil)
    outcome = sweep(*arguments, "--skip-bad", "--no-controls", "--site", "projector:out")
    assert outcome.code == 0, outcome.err
    assert "2 examples left out" in outcome.out
    listed = (tmp_path / "run/skipped.csv").read_text()
    assert "temple-3.png" in listed
    assert "flower-1.png" in listed


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_path_outside_the_image_folder_is_refused(sweep: Sweep, photos: Photos, tmp_path: Path, name: str) -> None:
    arguments = tiles(photos, tmp_path, lambda rows, folder: rows[0].update(image=name))
    refused(sweep(*arguments), name, "inside the image folder", run=tmp_path / "run")


@pytest.mark.usefixtures("no_model")
def test_unknown_target_lists_the_columns(sweep: Sweep, photos: Photos) -> None:
    refused(sweep("--data", photos.table, "--target", "colour"), "'colour'", "photo", "row")
    refused(sweep("--target", "mood"), "'mood'", "kind, category, colour")
    refused(sweep("--data", photos.table), "target must be given", "photo")


@pytest.mark.usefixtures("no_model")
def test_row_without_a_needed_column_is_refused(sweep: Sweep, photos: Photos, tmp_path: Path) -> None:
    arguments = tiles(photos, tmp_path, lambda rows, folder: rows[1].pop("question"))
    refused(sweep(*arguments), "question", run=tmp_path / "run")


@pytest.mark.usefixtures("no_model")
def test_target_with_one_class_is_refused(sweep: Sweep, photos: Photos, tmp_path: Path) -> None:
    arguments = tiles(photos, tmp_path, lambda rows, folder: [row.update(photo="same") for row in rows] and None)
    refused(sweep(*arguments), "'photo'", "two classes", run=tmp_path / "run")


@pytest.mark.usefixtures("no_model")
def test_fewer_groups_than_folds_is_refused(sweep: Sweep, photos: Photos, tmp_path: Path) -> None:
    def group(rows: list[dict[str, Any]], folder: Path) -> None:
        for number, row in enumerate(rows):
            row["group"] = f"g{number % 3}"

    refused(sweep(*tiles(photos, tmp_path, group)[:-1], 4), "folds=4", "got 3", run=tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["--layers", "0-7", "--site", "resid_post"], ["[0, 3)", "7"]),
        (["--site", "blocks.3.hook_resid_post"], ["[0, 3)", "blocks.3"]),
        (["--site", "hidden"], ["'hidden'", "resid_post"]),
        (["--site", "projector:gate"], ["linear_1, act, out"]),
        (["--site", "pattern"], ["same width"]),
        (["--site", "vision:resid_post", "--tokens", "last"], ["language model"]),
    ],
)
def test_site_or_layer_that_the_model_lacks_lists_what_it_has(
    sweep: Sweep, tmp_path: Path, arguments: list[str], phrases: list[str]
) -> None:
    refused(sweep("--limit", 30, "--target", "colour", "--folds", 2, *arguments), *phrases)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["smoll", "random:llava-1.5-70b", "./nowhere", "nobody/nothing"])
def test_unknown_model_is_refused(sweep: Sweep, tmp_path: Path, name: str) -> None:
    refused(sweep("--limit", 30, "--target", "colour", model=name), name)
    assert not (tmp_path / "run").exists()


def test_checkpoint_with_a_wrong_key_is_refused_by_that_key(sweep: Sweep, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    key = next(key for key in weights if "linear_1.weight" in key)
    weights[key.replace("linear_1", "linear_9")] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(sweep("--limit", 30, "--target", "colour", model=folder), "linear_")
    assert not (tmp_path / "run").exists()


def test_bin_that_is_not_plain_tensors_is_refused(sweep: Sweep, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Path("anything but a tensor")}, folder / "pytorch_model.bin")
    refused(sweep("--limit", 30, "--target", "colour", model=folder), "pytorch_model.bin")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_site_and_example(
    sweep: Sweep, checkpoint: Path, tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights[next(key for key in weights if "layers.1.mlp.down_proj" in key)].fill_(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # The check at load may refuse such weights already; here the one during capture is wanted.
    from models.loading.load import load

    monkeypatch.setattr("records.open_model.load", lambda *a, **k: load(*a, **{**k, "validate": False}))
    outcome = sweep("--limit", 30, "--target", "colour", "--site", "resid_post", model=folder)
    refused(outcome, "finite", "blocks.1.hook_resid_post", "test-0-0", run=tmp_path / "run")


def test_values_too_large_for_the_stored_dtype_are_refused(sweep: Sweep, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights[next(key for key in weights if "layers.1.mlp.down_proj" in key)].mul_(1e12)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    arguments = ["--limit", 30, "--target", "colour", "--site", "resid_post", "--store-dtype", "float16"]
    refused(sweep(*arguments, model=folder), "finite", "inf", "blocks.1.hook_resid_post", run=tmp_path / "run")


def test_disk_that_is_too_small_is_refused_before_capture(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(2**20, 0, 2**20))
    refused(sweep("--limit", 30, "--target", "colour"), "must fit on the disk", "--store-dtype")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_output_folder_with_foreign_files_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(sweep("--overwrite"), "thesis.tex")
    (tmp_path / "file").write_text("")
    refused(sweep("--out", tmp_path / "file"), "must be a folder")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("fold: 3", "Did you mean 'folds'?"),
        ("- folds", "mapping"),
        ("folds: [", "readable YAML"),
        ("skip-bad: true\nskip_bad: false", "twice"),
    ],
)
def test_config_that_cannot_be_used_is_refused(sweep: Sweep, tmp_path: Path, text: str, phrase: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    refused(sweep("--config", tmp_path / "sweep.yaml"), phrase)


@pytest.mark.usefixtures("no_model")
def test_box_pooling_without_boxes_or_of_words_is_refused_before_a_model_is_loaded(
    sweep: Sweep, photos: Photos, tmp_path: Path
) -> None:
    def unboxed(rows: list[dict[str, Any]], folder: Path) -> None:
        for row in rows:
            row.pop("boxes", None)
            row.pop("focus", None)

    refused(sweep(*tiles(photos, tmp_path, unboxed), "--pool", "box"), "pool 'box' must have a focus box")
    refused(sweep("--tokens", "last", "--pool", "box"), "tokens 'last'", "A box holds patches")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--batch-size", 0], "batch-size must be >= 1"),
        (["--seed", -1], "seed must be >= 0"),
        (["--folds", 1], "folds must be >= 2"),
        (["--limit", 0], "limit must be >= 1"),
        (["--pool", "none"], "--tokens last"),
        (["--split", "nowhere"], "'nowhere'"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_option_out_of_range_is_refused(sweep: Sweep, tmp_path: Path, arguments: list[object], phrase: str) -> None:
    refused(sweep(*arguments), phrase)
    assert not (tmp_path / "run").exists()


def test_show_of_what_is_no_finished_run_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    refused(sweep("show", tmp_path), "probe-sweep wrote")
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "laccolith probe-sweep"}))
    refused(sweep("show", tmp_path), "must be finished")


@pytest.mark.parametrize(("arguments", "phrase"), [(["--fold", "3"], "--fold"), (["--target", "mood"], "'mood'")])
def test_the_process_itself_ends_with_status_2(tmp_path: Path, arguments: list[str], phrase: str) -> None:
    command = [sys.executable, "-m", "probes.cli", *arguments, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 2
    assert phrase in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
