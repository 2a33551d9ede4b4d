"""SEED-Bench: multiple choice on twelve dimensions of pictures and videos; of a video the frame in the middle is shown.

Source: Li et al. 2023, "SEED-Bench", arXiv 2307.16125; LLaVA's ``convert_seed_for_submission``.
"""

from collections.abc import Sequence
from typing import Any

from tasks.benchmarks.layout.question import Id, Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, json_lines, read_json
from tasks.benchmarks.layout.scores import Scores, mean_scores, unlabelled
from tasks.errors import UserError
from tasks.prompts import LETTER

FILES = FileNames(questions=("llava-seed-bench.jsonl",), labels=("SEED-Bench.json",))


def prompt(row: Row) -> str:
    """The words of the model's prompt: the question, its four options, and the option-letter prompt."""
    if "text" in row.values:
        return row.text("text")
    options = "\n".join(f"{letter.upper()}. {row.text(f'choice_{letter}')}" for letter in "abcd")
    return f"{row.text('question')}\n{options}\n{LETTER}"


def read(source: Source) -> list[Question]:
    """The questions; a label is ``(letter, "image" or "video", dimension)``."""
    labels = _labels(source)
    questions = []
    for row in source.rows():
        name = row.id("question_id")
        given = _label(row.values, {}) if "answer" in row.values else labels.get(str(name))
        questions.append(
            Question(name, prompt(row), source.picture(row), row.text("category", ""), given, row=row.plain())
        )
    return questions


def parse(text: str) -> str:
    """The text itself: the rule compares it with the letter."""
    return text


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """Share of texts that are exactly the letter; a missing answer counts as wrong.

    Example:
        >>> asked = [Question("1", "?", label=("A", "image", "3")), Question("v2", "?", label=("B", "video", "11"))]
        >>> {m.part: m.value for m in score(asked, ["A", "B."]).metrics[:3]}
        {'all': 50.0, 'image': 100.0, 'video': 0.0}
    """
    if empty := unlabelled(questions, "scored with SEED-Bench.json; name it with --labels"):
        return empty
    right = [float(text == q.label[0]) for q, text in zip(questions, answers, strict=True)]
    first = [float((text or "").strip()[:1] == q.label[0]) for q, text in zip(questions, answers, strict=True)]
    parts = {"type": lambda q: q.label[1] or None, "dimension": lambda q: q.label[2] or None}
    kinds = {q.label[1] for q in questions} - {""}
    notes = (f"only {next(iter(kinds))} questions: the published figure over all has both",) if len(kinds) == 1 else ()
    return mean_scores(questions, right, parts=parts, others={"lmms-eval": first}, notes=notes)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The file for the leaderboard, in the order and with the ids of the labels if they are known."""
    given = {str(q.id): text for q, text in zip(questions, answers, strict=True) if text is not None}
    names = [name for name in _labels(source) if name in given] or list(given)
    return {"seed.jsonl": json_lines({"question_id": name, "prediction": given[name]} for name in names)}


def _labels(source: Source) -> dict[str, tuple[str, str, str]]:
    if not source.labels:
        return {}
    found = read_json(source.labels)
    if not isinstance(found, dict) or not {"questions", "question_type"} <= found.keys():
        raise UserError(f"labels must have the keys 'questions' and 'question_type', got {str(source.labels)!r}.")
    names = {number: name for name, number in found["question_type"].items()}
    return {_name(entry["question_id"]): _label(entry, names) for entry in found["questions"]}


def _label(entry: Any, names: dict[Any, str]) -> tuple[str, str, str]:
    number = entry.get("question_type_id")
    return str(entry["answer"]), str(entry.get("data_type") or ""), names.get(number, str(number or ""))


def _name(name: Id) -> str:
    return str(name)
