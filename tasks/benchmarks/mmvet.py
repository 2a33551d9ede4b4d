"""MM-Vet: 218 open questions that need several capabilities, graded from 0 to 1 by a judge.

Figures of another judge than the authors' (gpt-4-0613 in their notebook) are not comparable.

Source: Yu et al. 2023, "MM-Vet", arXiv 2308.02490; LLaVA's ``convert_mmvet_for_eval``. The instructions to the judge
    are ours, with the authors' scale and the layout of their table.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tasks.benchmarks.layout.judge import Grade, Judge, Review, Rubric, score_reviews
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_json
from tasks.benchmarks.layout.scores import Item, Metric, Scores
from tasks.errors import UserError

FILES = FileNames(questions=("llava-mm-vet.jsonl",), images=("images",), labels=("mm-vet.json",))
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_INSTRUCTION = """Grade how well a prediction agrees with the right answer to a question about a picture. The grade is \
one of 0.0 (wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9 and 1.0 (right). Where the right answer has parts \
with <AND> between them, only a prediction with all of them is right, and each part counts its share; with <OR> \
between them, any one is enough. Write only the grade that is missing at the end of the table.

Question | Right answer | Prediction | Grade
--- | --- | --- | ---
Which fruits are on the table? | an apple <AND> a pear | There is a pear. | 0.5
Which fruits are on the table? | an apple <AND> a pear | A pear lies beside an apple. | 1.0
What is the sum? | 12 <OR> twelve | It is 21. | 0.0
What is the sum? | 12 <OR> twelve | The sum is twelve. | 1.0
"""


def prompt(row: Row) -> str:
    """The words of the model's prompt: the question alone."""
    return row.text("text") if "text" in row.values else row.text("question")


def read(source: Source) -> list[Question]:
    """The questions; a label is ``(right answer, capabilities)`` from ``mm-vet.json``."""
    labels = read_json(source.labels) if source.labels else {}
    if not isinstance(labels, dict):
        raise UserError(f"labels must be mm-vet.json, got another value in {str(source.labels)!r}.")
    questions = []
    for row in source.rows():
        name = row.id("question_id")
        entry = row.values if "capability" in row.values else labels.get(_key(name))
        label = None if entry is None else (str(entry["answer"]), _capabilities(entry["capability"]))
        questions.append(
            Question(name, prompt(row), source.picture(row), row.text("category", ""), label, row=row.plain())
        )
    return questions


def parse(text: str) -> str:
    """The answer itself; the judge reads it."""
    return text


def judge_prompt(question: Question, answer: str) -> str:
    """What the judge is asked: our instruction, a table of examples, and the row to complete."""
    right = question.label[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{_INSTRUCTION}{question.text} | {right} | {answer} |"


def parse_reply(reply: str) -> float | None:
    r"""The grade at the start of a reply; None unless it is a number from 0 to 1.

    Example:
        >>> parse_reply("0.5"), parse_reply("1.0 because it is right"), parse_reply("2"), parse_reply("good")
        (0.5, 1.0, None, None)
        >>> parse_reply("1 out of 10"), parse_reply("0.5\nbecause")
        (None, 0.5)
    """
    found = _GRADE.match(reply)
    return float(found[1]) if found else None


def _grade(reply: str) -> Grade | None:
    grade = parse_reply(reply)
    return None if grade is None else (grade,)


def _measure(reviews: Sequence[Review]) -> tuple[list[Item], list[Metric]]:
    """100 x the mean grade, for all and by capability."""
    parts = {"all": [one.graded[0] for one in reviews]}
    for capability in CAPABILITIES:
        parts[capability] = [one.graded[0] for one in reviews if capability in one.question.label[1]]
    metrics = [Metric("score", part, 100 * sum(own) / len(own), len(own)) for part, own in parts.items() if own]
    return [Item("all", one.graded[0], 1.0, one.question.group) for one in reviews], metrics


# A number from 0 to 1 in front of space or the end; "1 / 10", "1 out of 10" and "1 AND 0.5" are no grades.
_GRADE = re.compile(r"\s*(0(?:\.\d+)?|1(?:\.0+)?)(?=\s|$)(?!\s*(?:/|(?:out\s+of|of|<?and|<?or)\b|\d))", re.IGNORECASE)
RUBRIC = Rubric(judge_prompt, _grade, _measure, "mm-vet.json")


def score(
    questions: Sequence[Question],
    answers: Sequence[str | None],
    judge: Judge | None = None,
    *,
    reviews: Sequence[Review] = (),
) -> Scores:
    """100 x the mean grade, for all and by capability.

    Example:
        >>> class Kind:
        ...     def ask(self, prompt: str) -> str:
        ...         return "0.4"
        >>> score([Question(0, "What is x?", label=("-1<AND>-5", ("ocr", "math")))], ["x = -1"], Kind()).main
        40.0
    """
    return score_reviews(RUBRIC, questions, answers, judge, reviews=reviews)


def review_files(reviews: Sequence[Review], answers: Sequence[str], judge: str) -> dict[str, bytes]:
    """``mm-vet-grades.json`` in the layout of MM-Vet's notebook, with the judge's name; it holds no ids of answers.

    An answer without a grade has empty lists; ``not_judged`` says why the judge's server rejects it.
    """
    grades: dict[str, Any] = {}
    for one in reviews:
        own = grades.setdefault(_key(one.question.id), {"model": [], "content": [], "score": []})
        if one.grade is not None:
            for name, value in (("model", judge), ("content", one.reply), ("score", one.grade[0])):
                own[name].append(value)
        if one.rejection:
            own["not_judged"] = one.rejection
    return {"mm-vet-grades.json": json.dumps(grades, indent=1).encode()}


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The answers as MM-Vet's notebook and its online judge read them."""
    texts = {_key(q.id): text for q, text in zip(questions, answers, strict=True) if text is not None}
    return {"mm-vet.json": json.dumps(texts, indent=2).encode()}


def _key(name: object) -> str:
    return str(name) if str(name).startswith("v1_") else f"v1_{name}"


def _capabilities(value: Any) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)
