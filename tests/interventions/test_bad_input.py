"""What a user of ``patch-sweep`` can get wrong, beyond options: files, pictures, weights, disks. One sentence each."""

import errno
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from records.manifest import commit
from tests.interventions.conftest import Outcome, PairFile, write_rows
from tests.interventions.test_cli import no_model, refused  # noqa: F401 - a fixture

Sweep = Callable[..., Outcome]
SHORT = ("--limit", 2, "--layers", "1", "--tokens", "image")


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
@pytest.mark.parametrize("which", ["clean", "corrupt"])
def test_picture_that_cannot_be_read_is_named(
    sweep: Sweep, pair_file: PairFile, tmp_path: Path, how: str, which: str
) -> None:
    BROKEN[how](pair_file.folder / f"{which}-2.png")
    refused(sweep("--data", pair_file.table), f"{which}-2.png")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("column", ["clean", "corrupt", "question", "answer", "foil"])
def test_row_without_a_needed_column_is_refused_with_what_it_has(
    sweep: Sweep, pair_file: PairFile, tmp_path: Path, column: str
) -> None:
    del pair_file.rows[2][column]
    write_rows(pair_file.table, pair_file.rows)
    refused(sweep("--data", pair_file.table), f"got None for '{column}' in line 3", "The row has: id")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_path_outside_the_image_folder_is_refused(sweep: Sweep, pair_file: PairFile, name: str) -> None:
    pair_file.rows[1]["corrupt"] = name
    write_rows(pair_file.table, pair_file.rows)
    refused(sweep("--data", pair_file.table), name, "inside the image folder")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("text", ["{broken", "[1, 2]", "\xff\xfe"])
def test_table_that_is_none_is_refused(sweep: Sweep, tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(text.encode("latin-1"))
    refused(sweep("--data", tmp_path / "pairs.jsonl"), "pairs.jsonl")
    refused(sweep("--data", tmp_path), str(tmp_path))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("token: image", "Did you mean 'tokens'?"),
        ("- tokens", "mapping"),
        ("tokens: [", "readable YAML"),
        ("batch-size: 2\nbatch_size: 3", "twice"),
    ],
)
def test_config_that_cannot_be_used_is_refused(sweep: Sweep, tmp_path: Path, text: str, phrase: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    refused(sweep("--config", tmp_path / "sweep.yaml"), phrase)


@pytest.mark.usefixtures("no_model")
def test_transplant_has_no_other_corrupt_run(sweep: Sweep, tmp_path: Path) -> None:
    refused(sweep("--op", "transplant", "--corruption", "blank"), "corruption must not be given for op 'transplant'")
    assert not (tmp_path / "run").exists()


def copied(checkpoint: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The checkpoint with other weights."""
    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_checkpoint_with_a_wrong_key_is_refused_by_that_key(sweep: Sweep, checkpoint: Path, tmp_path: Path) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        key = next(key for key in weights if "linear_1.weight" in key)
        weights[key.replace("linear_1", "linear_9")] = weights.pop(key)

    refused(sweep(*SHORT, model=copied(checkpoint, tmp_path, rename)), "linear_")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("op", ["patch", "attribute", "transplant"])
def test_activations_that_are_not_finite_name_a_pair(
    sweep: Sweep, checkpoint: Path, tmp_path: Path, value: float, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(
        checkpoint, tmp_path, lambda w: w[next(k for k in w if "language_model.layers.1.mlp.down" in k)].fill_(value)
    )
    from models.loading.load import load

    monkeypatch.setattr("records.open_model.load", lambda *a, **k: load(*a, **{**k, "validate": False}))
    line = ["--limit", 2, "--layers", "1", *(["--tokens", "last"] if op != "transplant" else ["--donor", folder])]
    refused(sweep("--op", op, *line, model=folder), "finite", "of 'test-0-0/colour'")
    assert not (tmp_path / "run/results.parquet").exists()


@pytest.mark.parametrize("full_at", ["pairs.parquet", "00001.safetensors", "values.parquet", "results.csv", "figures"])
def test_disk_that_fills_up_on_the_way_is_one_sentence_and_the_run_goes_on_later(
    sweep: Sweep, tmp_path: Path, full_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, data: bytes) -> None:
        if path.name == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        commit(path, data)

    line = [*SHORT, "--batch-size", 1]
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        for module in ("interventions.sweep", "interventions.batch_values", "records.tables"):
            patched.setattr(f"{module}.commit", write)
        if full_at == "figures":
            patched.setattr("figures.runs.save_figure", lambda figure, path: write(Path(full_at), b""))
        refused(sweep(*line), "room on the disk", "No space left on device", "start the same command again")
    assert (run / "results.parquet").exists() == (full_at == "figures")
    assert sweep(*line).code == 0
    assert len(pd.read_csv(run / "results.csv")) == 2  # two metrics of one cell


def test_picture_that_goes_missing_on_the_way_is_named(
    sweep: Sweep, pair_file: PairFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.loading.load import load

    def lose(*arguments: Any, **options: Any) -> Any:
        (pair_file.folder / "corrupt-3.png").unlink()
        return load(*arguments, **options)

    monkeypatch.setattr("records.open_model.load", lose)
    refused(sweep("--data", pair_file.table, "--layers", "1", "--batch-size", 2), "corrupt-3.png")
    assert not (tmp_path / "run/results.parquet").exists()


@pytest.mark.parametrize(("shape", "phrase"), [((1,), "must have 48 numbers"), ((47,), "must have 48 numbers")])
def test_direction_of_another_width_is_refused(
    sweep: Sweep, tmp_path: Path, shape: tuple[int, ...], phrase: str
) -> None:
    save_file({"direction": torch.ones(shape)}, tmp_path / "d.safetensors")
    line = ["--op", "steer", "--steer-file", tmp_path / "d.safetensors"]
    refused(sweep(*SHORT, *line), phrase, "'blocks.1.hook_resid_post'")
    refused(sweep(*SHORT, *line, "--steer-name", "up"), "direction must be one of direction, got 'up'")
    assert not (tmp_path / "run").exists()


def test_resampling_needs_another_picture(sweep: Sweep, tmp_path: Path) -> None:
    line = ["--op", "ablate", "--ablation", "resample", "--limit", 1, "--layers", "1"]
    refused(sweep(*line), "examples must contain another with", "test-0-0")
    assert not (tmp_path / "run").exists()
