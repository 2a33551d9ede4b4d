"""Fixtures of the probe sweep: a checkpoint folder of the tiny LLaVA, ordinary photos, and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.cbook
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from probes.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Photos(NamedTuple):
    table: Path
    folder: Path
    rows: list[dict[str, object]]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Tiles of scikit-learn's two photos and of one of Matplotlib's, labelled by the photo they come from."""
    folder = tmp_path_factory.mktemp("photos")
    sources = {
        "temple": Image.fromarray(load_sample_images().images[0]),
        "flower": Image.fromarray(load_sample_images().images[1]),
        "portrait": Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"),
    }
    rows: list[dict[str, object]] = []
    for what, photo in sources.items():
        side = min(photo.size) // 4
        for tile in range(12):
            left, top = (tile % 4) * side, (tile // 4) * side
            name = f"{what}-{tile}.png"
            photo.crop((left, top, left + side, top + side)).save(folder / name)
            rows.append({"image": name, "question": "What is this?", "answer": what, "photo": what, "row": float(top)})
    table = folder / "tiles.jsonl"
    write_rows(table, rows)
    return Photos(table, folder, rows)


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sweep(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``probe-sweep`` in this process on the tiny checkpoint, writing to ``tmp_path / "run"`` by default."""

    def call(*arguments: object, model: object = checkpoint) -> Outcome:
        given = [str(argument) for argument in arguments]
        if "--out" not in given and given[:1] != ["show"]:
            given += ["--out", str(tmp_path / "run")]
        if given[:1] != ["show"]:
            given += ["--model", str(model)]
        capfd.readouterr()
        code = 0
        try:
            main(given)
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capfd.readouterr())

    return call
