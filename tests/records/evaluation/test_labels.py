"""Labels that change after a run was scored: scores are made anew, or the change is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from records.evaluation import run as evaluation
from records.evaluation.config import EvaluationConfig
from records.evaluation.run import run_benchmark_eval
from records.evaluation.sources import open_benchmark
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.benchmarks.layout.dataset import benchmark_dataset
from tests.tasks.benchmarks.bundle import png, write


@pytest.fixture
def pope(tmp_path: Path) -> Path:
    """Two questions with labels in a file of the folder."""
    rows = [
        {"question_id": i, "image": "a.png", "text": f"Is there a {word}?", "category": "random"}
        for i, word in enumerate(("cat", "dog"))
    ]
    files = {"llava_pope_test.jsonl": rows, "val2014/a.png": png(), **labels("yes", "no")}
    return write(tmp_path / "pope", files)


def labels(*words: str) -> dict[str, object]:
    return {
        "coco/coco_pope_random.json": [{"question_id": i, "image": "a.png", "label": w} for i, w in enumerate(words)]
    }


def run(pope: Path, out: Path, notes: list[str], given: Path | None = None) -> FinishedRun:
    settings = EvaluationConfig(ModelOptions("random:tiny"), (f"pope={pope}",), labels=given, new_tokens=2, out=out)
    found = run_benchmark_eval(settings, on_note=notes.append)
    assert isinstance(found, FinishedRun)
    return found


@pytest.mark.parametrize("named", [False, True])
def test_other_labels_give_new_scores_of_the_same_answers_and_the_change_is_said(
    named: bool, pope: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, notes = tmp_path / "run", list[str]()
    before = run(pope, out, notes)
    run(pope, out, notes)
    assert not any("labels" in note for note in notes)
    other = write(tmp_path / "other" if named else pope, labels("no", "yes"))
    asked: list[int] = []
    monkeypatch.setattr(
        evaluation, "answer_questions", lambda llava, questions, indices, **_: asked.extend(indices) or iter(())
    )
    after = run(pope, out, notes, other / "coco" if named else None)
    assert asked == [], "answers do not depend on labels"
    assert notes[-1] == "pope: its labels changed since the run was scored; the answers are scored anew"
    accuracy = [
        float(found.results.set_index(["metric", "part"]).loc[("accuracy", "mean"), "score"])
        for found in (before, after)
    ]
    assert sum(accuracy) == 100.0, "what was right is wrong now"
    notes.clear()
    run(pope, out, notes, other / "coco" if named else None)
    assert not any("labels" in note for note in notes)


def test_digests_of_labels_are_apart_from_those_of_questions(pope: Path) -> None:
    before = open_benchmark(f"pope={pope}")
    dataset = benchmark_dataset(f"benchmark:pope={pope}").digest
    write(pope, labels("no", "yes"))
    after = open_benchmark(f"pope={pope}")
    assert before.digest == after.digest and before.labels_digest != after.labels_digest
    assert benchmark_dataset(f"benchmark:pope={pope}").digest != dataset


def change_category(row: dict[str, object]) -> None:
    row["category"] = "popular"


def test_examples_have_another_digest_if_a_label_of_any_kind_changes(tmp_path: Path) -> None:
    captions = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
    texts = ("A hill.", "A green hill.")
    seen = set()
    for second in ("A green hill.", "A red hill."):
        listed = [{"image_id": 1, "caption": text} for text in (texts[0], second)]
        folder = write(tmp_path / "c", {"captions_val.json": captions | {"annotations": listed}, "images/a.png": png()})
        seen.add(benchmark_dataset(f"benchmark:caption={folder}").digest)
    assert len(seen) == 2, "the second caption counts in CIDEr"
    row = {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "category": "random", "answer": "yes"}
    kinds: list[Callable[[dict[str, object]], None]] = [lambda row: None, change_category]
    seen = set()
    for change in kinds:
        own = json.loads(json.dumps(row))
        change(own)
        folder = write(tmp_path / "p", {"llava_pope_test.jsonl": [own], "val2014/a.png": png()})
        seen.add(benchmark_dataset(f"benchmark:pope={folder}").digest)
    assert len(seen) == 2, "the category is a label too"
