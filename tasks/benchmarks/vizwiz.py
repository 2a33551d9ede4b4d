"""VizWiz: questions that blind people asked about their own photographs; many cannot be answered.

A server scores the test split. Where people's answers are given (val), they are scored here by VQA accuracy with
EvalAI's processor, as lmms-eval does.

Source: Gurari et al. 2018, "VizWiz Grand Challenge", arXiv 1802.08218; LLaVA's ``convert_vizwiz_for_submission``.
"""

import json
from collections.abc import Sequence
from typing import Any

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_json
from tasks.benchmarks.layout.scores import Scores, answered, mean_scores, unlabelled
from tasks.errors import UserError
from tasks.prompts import SHORT, UNANSWERABLE
from tasks.readers.media import picture_name
from tasks.rules.vqav2 import accuracy, normalise

FILES = FileNames(questions=("llava_test.jsonl",), images=("test", "val"), labels=("val.json", "Annotations/val.json"))


def prompt(row: Row) -> str:
    """The words of the model's prompt: the question, the way out, and the short-answer prompt."""
    return row.text("text") if "text" in row.values else f"{row.text('question')}\n{UNANSWERABLE}\n{SHORT}"


def read(source: Source) -> list[Question]:
    """The questions, with people's answers as labels if they are known."""
    labels: dict[str, list[str]] = {}
    if source.labels:
        found = read_json(source.labels)
        if not isinstance(found, list):
            raise UserError(f"labels must be a list of annotations, got another value in {str(source.labels)!r}.")
        labels = {entry["image"]: [one["answer"] for one in entry.get("answers", ())] for entry in found}
    questions = []
    for row in source.rows():
        image: Any = row.values.get("image")
        given = row.values.get("answers") or (labels.get(image) if isinstance(image, str) else None)
        name = row.id("question_id")
        questions.append(
            Question(name, prompt(row), source.picture(row), row.text("category", ""), given or None, row=row.plain())
        )
    return questions


def parse(text: str) -> str:
    """The answer in the normal form of EvalAI's processor."""
    return normalise(text)


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """VQA accuracy against people's answers, where they are known.

    Example:
        >>> score([Question(0, "What is it?", label=["Macy's"] * 3 + ["a shop"] * 7)], ["macy's"]).main
        90.0
    """
    if empty := unlabelled(questions, "a server scores the test split: upload the file, or give val's annotations"):
        return empty
    texts = answered(questions, answers)
    return mean_scores(questions, [accuracy(text, q.label) for q, text in zip(questions, texts, strict=True)])


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The file for the server: one answer for each picture."""
    texts = answered(questions, answers)
    rows = [
        {"image": picture_name(q.row.get("image")) or f"{q.id}.jpg", "answer": parse(text)}
        for q, text in zip(questions, texts, strict=True)
    ]
    return {"vizwiz.json": json.dumps(rows).encode()}
