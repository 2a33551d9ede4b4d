"""Fixtures: the kinds of tiny LLaVA, checkpoint folders, pairs of one's own, and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from interventions.cli import main
from models.llava import Llava
from models.loading.load import load
from tests.conftest import tiny_config


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def models(llava: Llava, llava_plain: Llava) -> dict[tuple[bool, str], Llava]:
    """By (grouped queries, attention)."""
    eager = {g: load(tiny_config(grouped=g), seed=0 if g else 1, attn="eager", validate=False) for g in (True, False)}
    return {
        (True, "sdpa"): llava,
        (False, "sdpa"): llava_plain,
        (True, "eager"): eager[True],
        (False, "eager"): eager[False],
    }


@pytest.fixture(scope="session")
def tuned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights in the blocks, the final norm and the head of the language model."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    changed = [key for key in weights if "language_model.layers" in key or "lm_head" in key or "model.norm" in key]
    assert len(changed) > 20
    for key in changed:
        weights[key] = weights[key] + 0.3 * weights[key].std().nan_to_num(0.1) * torch.randn(
            weights[key].shape, generator=generator
        )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class PairFile(NamedTuple):
    table: Path
    folder: Path
    rows: list[dict[str, object]]


@pytest.fixture
def pair_file(tmp_path: Path) -> PairFile:
    """Four pairs of noisy pictures in a JSONL file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for number, (answer, foil) in enumerate([("cat", "dog"), ("taxi", "apple"), ("sun", "rain"), ("red", "blue")]):
        for which in ("clean", "corrupt"):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{which}-{number}.png")
        rows.append(
            {
                "id": f"p{number}", "clean": f"clean-{number}.png", "corrupt": f"corrupt-{number}.png",
                "question": "What is this?", "answer": answer, "foil": foil,
            }
        )  # fmt: skip
    return PairFile(write_rows(folder / "pairs.jsonl", rows), folder, rows)


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def sweep(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs ``patch-sweep`` in this process on the tiny checkpoint, writing to ``tmp_path / "run"`` by default."""

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
