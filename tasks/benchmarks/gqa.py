"""GQA testdev-balanced: compositional questions about Visual Genome pictures, answered with a word or phrase.

Source: Hudson & Manning 2019, "GQA", arXiv 1902.09506, and its ``eval.py``; LLaVA's ``convert_gqa_for_eval``.
"""

import json
import string
from collections.abc import Sequence
from typing import Any

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_json, read_rows
from tasks.benchmarks.layout.scores import Scores, answered, mean_scores, unlabelled
from tasks.errors import UserError
from tasks.example import Picture
from tasks.prompts import SHORT

FILES = FileNames(
    questions=("llava_gqa_testdev_balanced.jsonl", "testdev_balanced_instructions"),
    images=("data/images", "images", "testdev_balanced_images"),
    labels=("data/testdev_balanced_questions.json", "testdev_balanced_questions.json"),
)


def prompt(row: Row) -> str:
    """The words of the model's prompt: ``text`` of LLaVA's file, or the question with the short-answer prompt."""
    return row.text("text") if "text" in row.values else f"{row.text('question')}\n{SHORT}"


def read(source: Source) -> list[Question]:
    """The questions; a label is ``(answer, structural type, semantic type)``."""
    labels: dict[str, Any] = {}
    if source.labels:
        found = read_json(source.labels)
        if not isinstance(found, dict):
            raise UserError(f"labels must map question ids to questions, got a list in {str(source.labels)!r}.")
        labels = {name: _label(entry) for name, entry in found.items()}
    rows = source.rows()
    pictures = _pictures(source) if source.is_parquet and "image" not in rows[0].values else None
    questions = []
    for row in rows:
        name = row.id("question_id", "id")
        label = _label(row.values) if "answer" in row.values else labels.get(str(name))
        picture = source.picture(row) if pictures is None else _named(pictures, row)
        questions.append(Question(name, prompt(row), picture, row.text("category", ""), label, row=row.plain()))
    return questions


def parse(text: str) -> str:
    """The answer as LLaVA hands it to the script: without full stops at its end, in lower case.

    Example:
        >>> parse("A Dog..")
        'a dog'
    """
    return text.rstrip(".").lower()


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """Share of answers that equal the label exactly, also for binary and open questions and by type.

    Example:
        >>> asked = [Question(1, "?", label=("yes", "verify", "obj")), Question(2, "?", label=("dog", "query", "cat"))]
        >>> {m.part: m.value for m in score(asked, ["Yes.", "a dog"]).metrics[:3]}
        {'all': 50.0, 'binary': 100.0, 'open': 0.0}
    """
    if empty := unlabelled(questions, "scored with data/testdev_balanced_questions.json; name it with --labels"):
        return empty
    texts = answered(questions, answers)
    right = [float(parse(text) == q.label[0]) for q, text in zip(questions, texts, strict=True)]
    lmms = [float(_bare(text) == _bare(q.label[0])) for q, text in zip(questions, texts, strict=True)]
    parts = {
        "answer": lambda q: ("open" if q.label[1] == "query" else "binary") if q.label[1] else None,
        "structural": lambda q: q.label[1] or None,
        "semantic": lambda q: f"semantic {q.label[2]}" if q.label[2] else None,
    }
    return mean_scores(questions, right, parts=parts, others={"lmms-eval": lmms})


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The predictions that GQA's ``eval.py`` reads."""
    rows = [
        {"questionId": q.id, "prediction": parse(text)}
        for q, text in zip(questions, answers, strict=True)
        if text is not None
    ]
    return {"testdev_balanced_predictions.json": json.dumps(rows).encode()}


def _bare(text: str) -> str:
    """The text as lmms-eval compares it: in lower case, without punctuation."""
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def _label(entry: Any) -> tuple[str, str, str]:
    types = entry.get("types") or {}
    return str(entry["answer"]), str(types.get("structural") or ""), str(types.get("semantic") or "")


def _pictures(source: Source) -> dict[str, Picture]:
    """The pictures of the second part of the Hugging Face data set by their ids."""
    found = {}
    for path in sorted(source.images.glob("*.parquet")):
        for row in read_rows(path):
            picture = source.picture(row)
            if picture is not None:
                found[str(row.id("id"))] = picture
    return found


def _named(pictures: dict[str, Picture], row: Row) -> Picture:
    name = row.text("imageId")
    if name not in pictures:
        raise UserError(f"picture must be in the Parquet files of the image folder, got none for {name!r}.")
    return pictures[name]
