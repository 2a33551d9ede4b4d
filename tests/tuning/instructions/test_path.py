"""The commands of docs/data.md run as the page has them, at small size: make questions, generate, mix, train, score."""

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.scripted_server import scripted_server
from tests.tasks.benchmarks.bundle import write
from tests.test_docs import COMMANDS, ROOT, command_lines
from tests.tuning.instructions.test_generate import NOUNS, good

N = 8
PICTURES = [f"{number:012d}.png" for number in range(N)]
# What the test changes of the page's commands: values of options, and options that make a run small.
SMALL = {"--samples": str(N), "--layers": "1-2"}
ADDED = {
    "layerwise-finetune": ["--max-length", "600", "--batch-size", "4", "--steps", "4", "--lr", "1e-3"],
    "benchmark-eval": ["--new-tokens", "3"],
}


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), (20 * number, 90, 90)).save(content, format="PNG")
    return content.getvalue()


def write_inputs(folder: Path) -> None:
    """The files that the page names: COCO's captions and boxes, GQA's questions, photographs with objects, pictures."""
    images = [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(PICTURES)]
    nouns = NOUNS[:N]
    captions = [
        {"image_id": i, "id": 2 * i + j, "caption": text}
        for i, noun in enumerate(nouns)
        for j, text in enumerate((f"There is a {noun} here.", f"A {noun} in the middle of a plain background."))
    ]
    boxes = [{"image_id": i, "bbox": [5, 5, 25, 20], "category_id": i, "iscrowd": 0} for i in range(N)]
    named = [{"id": i, "name": noun} for i, noun in enumerate(nouns)]
    questions = [
        {"image": name, "question": "Is there a dog?", "answer": "no" if i else "yes"}
        for i, name in enumerate(PICTURES)
    ]
    files: dict[str, Any] = {
        "captions_train2017.json": {"images": images, "annotations": captions},
        "instances_train2017.json": {"images": images, "annotations": boxes, "categories": named},
        "gqa.jsonl": questions,
    }
    for place in ("pictures/coco/train2017", "pictures/gqa/images"):
        files |= {f"{place}/{name}": picture(number) for number, name in enumerate(PICTURES)}
    files["photos.jsonl"] = [{"image": f"{noun}.png", "objects": [noun]} for noun in nouns[:4]]
    files |= {f"photos/{noun}.png": picture(number) for number, noun in enumerate(nouns[:4])}
    write(folder, files)


def made_small(words: Sequence[str], model: Path) -> list[str]:
    """A command of the page with the values of ``SMALL`` and the options of ``ADDED``."""
    name, *given = words
    changed = [SMALL.get(before, word) for before, word in zip(["", *given], given, strict=False)]
    if given[0] in ("mix", "make-pope"):
        return changed
    return [*changed, *ADDED.get(name, []), *(["--model", str(model)] if name == "layerwise-finetune" else [])]


def test_the_commands_of_the_page_about_data_lead_from_captions_to_a_score(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_inputs(tmp_path)
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    *block, own_questions = command_lines(page.partition("\n## ")[0])
    called = [words[0] for words in block]
    assert called == ["generate-instructions"] * 2 + ["layerwise-finetune"] * 2 + ["benchmark-eval"]
    assert own_questions[:2] == ["benchmark-eval", "make-pope"]
    with scripted_server(good) as server:
        monkeypatch.setitem(SMALL, "--url", server.url)
        for words in (own_questions, *block):
            importlib.import_module(COMMANDS[words[0]]).main(made_small(words, base))
            assert capsys.readouterr().out
    runs = tmp_path / "runs"
    samples = json.loads((runs / "instructions" / "instructions.json").read_text())
    assert len(samples) == len(server.asked) == N
    mixed = json.loads((runs / "mix" / "mix.json").read_text())
    assert pd.read_csv(runs / "mix" / "results.csv")["samples"].tolist() == [N, N // 2, N + N // 2]
    assert {sample["image"].rpartition("/")[0] for sample in mixed} == {"coco/train2017", "gqa/images"}
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (base, runs / "tuned"))
    changed = {name for name in after if not before[name].equal(after[name])}
    assert changed and all(".layers.1." in name or ".layers.2." in name or "projector" in name for name in changed)
    losses = [json.loads(line).get("loss") for line in (runs / "tuned" / "log.jsonl").read_text().splitlines()]
    assert losses and all(loss is None or 0 < loss < 20 for loss in losses)
    scores = pd.read_csv(runs / "scores" / "results.csv")
    assert (scores.loc[0, "n"], scores.loc[0, "metric"]) == (24, "main") and scores.loc[0, "score"] >= 0
    answers = (runs / "scores" / "answers" / "pope.jsonl").read_text().splitlines()
    assert len(answers) == 24
