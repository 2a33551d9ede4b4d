"""TextVQA val: questions about text in pictures. LLaVA's prompts list what an OCR system read.

Source: Singh et al. 2019, "Towards VQA Models That Can Read", arXiv 1904.08920; the M4C evaluator in LLaVA's
    ``eval_textvqa``. lmms-eval scores by the same rule but asks without the OCR tokens, so its numbers differ.
"""

from collections.abc import Sequence
from typing import Any

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_json
from tasks.benchmarks.layout.scores import Scores, answered, mean_scores, unlabelled
from tasks.errors import UserError, shown
from tasks.prompts import SHORT
from tasks.rules.vqav2 import accuracy, normalise

FILES = FileNames(
    questions=("llava_textvqa_val_v051_ocr.jsonl",), images=("train_images",), labels=("TextVQA_0.5.1_val.json",)
)
_OCR = "Reference OCR token: "


def prompt(row: Row) -> str:
    """The words of the model's prompt: the question, the OCR tokens, and the short-answer prompt."""
    if "text" in row.values:
        return row.text("text")
    tokens: Any = row.values.get("ocr_tokens")
    read_text = f"\n{_OCR}{', '.join(tokens)}" if tokens is not None else ""
    return f"{row.text('question')}{read_text}\n{SHORT}"


def question_of(text: str) -> str:
    r"""The question in a prompt, in lower case, as the script finds it.

    Raises:
        UserError: If the prompt has not the layout of LLaVA's file.

    Example:
        >>> question_of("What Is it?\nReference OCR token: A, B\nAnswer the question using a single word or phrase.")
        'what is it?'
    """
    lines = text.split("\n")
    if _OCR in text and len(lines) == 3:
        return lines[1 if text.startswith(_OCR.rstrip()) else 0].lower()
    if len(lines) == 2:
        return lines[0].lower()
    raise UserError(
        f"prompt must be a question, its OCR tokens and the format prompt on three lines, got {shown(text)}."
    )


def read(source: Source) -> list[Question]:
    """The questions; people's ten answers are found by picture and question, as in the script."""
    labels: dict[tuple[str, str], list[str]] = {}
    if source.labels:
        found = read_json(source.labels)
        if not isinstance(found, dict) or "data" not in found:
            raise UserError(f"labels must have the key 'data', got none in {str(source.labels)!r}.")
        labels = {(one["image_id"], one["question"].lower()): one["answers"] for one in found["data"]}
    questions = []
    for row in source.rows():
        words = prompt(row)
        name = row.id("image_id", "question_id") if source.is_parquet else row.id("question_id")
        label = row.values.get("answers") or (labels.get((str(name), question_of(words))) if labels else None)
        questions.append(
            Question(name, words, source.picture(row), row.text("category", ""), label or None, row=row.plain())
        )
    return questions


def parse(text: str) -> str:
    """The answer in the normal form of EvalAI's processor."""
    return normalise(text)


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """VQA accuracy over ten people's answers, with EvalAI's processor.

    Example:
        >>> score([Question("a", "?", label=["nokia"] * 2 + ["phone"] * 8)], ["Nokia"]).main.__round__(6)
        60.0
    """
    if empty := unlabelled(questions, "scored with TextVQA_0.5.1_val.json; name it with --labels"):
        return empty
    for question in questions:
        if len(question.label) != 10:
            raise UserError(f"labels must have ten answers, got {len(question.label)} for {question.id!r}.")
    texts = answered(questions, answers)
    return mean_scores(questions, [accuracy(text, q.label) for q, text in zip(questions, texts, strict=True)])


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """Nothing: val is scored here."""
    return {}
