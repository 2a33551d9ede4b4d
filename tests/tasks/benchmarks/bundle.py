"""Small files in the layouts of LLaVA's evaluation bundle and of Hugging Face data sets, written for one test."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.scores import Scores
from tasks.benchmarks.registry import BENCHMARKS


def png(colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write files by relative name: bytes, text, rows of ``.jsonl``, rows of a table (``.parquet``), or JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        elif path.suffix == ".parquet":
            pd.DataFrame(content).to_parquet(path, index=False)
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def read(name: str, folder: Path) -> list[Question]:
    """The questions of a benchmark in a folder with its official file names."""
    benchmark = BENCHMARKS[name]
    return benchmark.read(benchmark.module.FILES.find(folder))


def uploads(name: str, folder: Path, answers: Sequence[str | None]) -> dict[str, bytes]:
    """The upload files of a benchmark."""
    module = BENCHMARKS[name].module
    source = module.FILES.find(folder)
    return module.write_submission(module.read(source), answers, source)


def found(scores: Scores, rule: str = "official") -> dict[str, float]:
    """The values of a rule by ``name part``, rounded to four decimals."""
    return {f"{m.name} {m.part}": round(m.value, 4) for m in scores.metrics if m.rule == rule}


def score(name: str, folder: Path, answers: Sequence[str | None]) -> Scores:
    """The scores of answers to the questions of a folder."""
    return BENCHMARKS[name].module.score(read(name, folder), answers)
