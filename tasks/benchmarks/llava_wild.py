"""LLaVA-Bench (in the wild): 60 open questions, graded by a judge against reference answers of GPT-4.

The score is the judge's sum for the model over that for the references. Figures of another judge than the authors'
(gpt-4-0314) are not comparable. An answer without a grade is counted and left out; the authors' script scores it -1.

Source: Liu et al. 2023, "Visual Instruction Tuning", arXiv 2304.08485; LLaVA's ``eval_gpt_review_bench`` and
    ``summarize_gpt_review``. The instructions to the judge are ours, with the authors' scale and layout.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.benchmarks.layout.judge import Grade, Judge, Review, Rubric, score_reviews
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, json_lines, read_rows
from tasks.benchmarks.layout.scores import Item, Metric, Scores

FILES = FileNames(questions=("questions.jsonl",), images=("images",), labels=("context.jsonl",))
SYSTEM = "You compare the answers of two assistants, fairly and exactly."
LOWEST, HIGHEST = 1.0, 10.0
_REFERENCES = "answers_gpt4.jsonl"
_INSTRUCTION = (
    "Two assistants answered the question above about a picture. You cannot see the picture; the context describes it. "
    "Grade both answers for how helpful, relevant, accurate and detailed they are, each with a number from 1 to 10, "
    "where more is better. Write nothing on the first line but the two numbers, that of Assistant 1, then that of "
    "Assistant 2, with a space between them. Explain the grades on the lines below. The order of the answers must not "
    "count."
)


class Reference(NamedTuple):
    """What the judge is shown beside the model's answer."""

    context: str
    answer: str
    answer_id: str


def prompt(row: Row) -> str:
    """The words of the model's prompt: the question alone."""
    return row.text("text") if "text" in row.values else row.text("question")


def read(source: Source) -> list[Question]:
    """The questions; a label is a ``Reference`` from ``context.jsonl`` and ``answers_gpt4.jsonl`` beside it."""
    contexts: dict[str, str] = {}
    references: dict[str, Row] = {}
    if source.labels:
        contexts = {row.text("image"): _joined(row.values.get("caption")) for row in read_rows(source.labels)}
        beside = source.labels.with_name(_REFERENCES)
        if beside.is_file():
            references = {str(row.id("question_id")): row for row in read_rows(beside)}
    questions = []
    for row in source.rows():
        name, image = row.id("question_id"), row.values.get("image")
        label = None
        if "gpt_answer" in row.values:
            label = Reference(_joined(row.values.get("caption")), row.text("gpt_answer"), str(name))
        elif isinstance(image, str) and image in contexts and str(name) in references:
            given = references[str(name)]
            label = Reference(contexts[image], given.text("text"), str(given.values.get("answer_id", name)))
        questions.append(
            Question(name, prompt(row), source.picture(row), row.text("category", ""), label, row=row.plain())
        )
    return questions


def parse(text: str) -> str:
    """The answer itself; the judge reads it."""
    return text


def judge_prompt(question: Question, answer: str) -> str:
    """What the judge is asked about an answer, in the authors' layout."""
    reference: Reference = question.label
    return (
        f"[Context]\n{reference.context}\n\n[Question]\n{question.text}\n\n"
        f"[Assistant 1]\n{reference.answer}\n\n[End of Assistant 1]\n\n"
        f"[Assistant 2]\n{answer}\n\n[End of Assistant 2]\n\n[System]\n{_INSTRUCTION}\n\n"
    )


def parse_reply(reply: str) -> tuple[float, float] | None:
    r"""The two grades on the first line; None unless it is two numbers from 1 to 10.

    Example:
        >>> parse_reply("8, 6.5\nThe second ..."), parse_reply("Both are good."), parse_reply("8 11")
        ((8.0, 6.5), None, None)
    """
    parts = reply.split("\n")[0].replace(",", " ").split()
    if not all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        return None
    grades = [float(part) for part in parts]
    if len(grades) != 2 or not all(LOWEST <= g <= HIGHEST for g in grades):
        return None
    return grades[0], grades[1]


def _measure(reviews: Sequence[Review]) -> tuple[list[Item], list[Metric]]:
    """100 x sum of the model's grades / sum of the references', by category and for all."""
    parts: dict[str, list[Grade]] = {}
    for one in reviews:
        for part in ("all", f"llava_bench_{one.question.category}"):
            parts.setdefault(part, []).append(one.graded)
    metrics = [
        Metric("relative score", part, 100 * sum(g[1] for g in own) / sum(g[0] for g in own), len(own))
        for part, own in parts.items()
    ]
    return [Item("all", one.graded[1], one.graded[0], one.question.group) for one in reviews], metrics


RUBRIC = Rubric(
    judge_prompt, parse_reply, _measure, "context.jsonl and answers_gpt4.jsonl beside it", SYSTEM, bounded=False
)


def score(
    questions: Sequence[Question],
    answers: Sequence[str | None],
    judge: Judge | None = None,
    *,
    reviews: Sequence[Review] = (),
) -> Scores:
    """100 x mean grade of the model / mean grade of the references, by category and for all.

    Example:
        >>> class Kind:
        ...     def ask(self, prompt: str) -> str:
        ...         return "8 6"
        >>> asked = [Question(0, "What is it?", category="conv", label=Reference("A hill.", "A hill.", "r"))]
        >>> score(asked, ["A hill"], Kind()).main
        75.0
    """
    return score_reviews(RUBRIC, questions, answers, judge, reviews=reviews)


def review_files(reviews: Sequence[Review], answers: Sequence[str], judge: str) -> dict[str, bytes]:
    """``reviews.jsonl`` in LLaVA's layout; without a grade there is no tuple, and ``not_judged`` says why none came.

    Args:
        reviews: In the order of the answers.
        answers: Ids of the model's answers.
        judge: The judge's name, which this layout does not hold.
    """
    rows: list[dict[str, Any]] = []
    for number, (one, own) in enumerate(zip(reviews, answers, strict=True), 1):
        row = {
            "id": number, "question_id": one.question.id, "answer1_id": one.question.label.answer_id, "answer2_id": own,
            "category": f"llava_bench_{one.question.category}", "content": one.reply,
        }  # fmt: skip
        row |= {} if one.grade is None else {"tuple": list(one.grade)}
        rows.append(row | ({"not_judged": one.rejection} if one.rejection else {}))
    return {"reviews.jsonl": json_lines(rows)}


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """Nothing: the judge is asked here."""
    return {}


def _joined(caption: Any) -> str:
    return "\n".join(map(str, caption)) if isinstance(caption, list) else str(caption or "")
