"""ScienceQA test: multiple choice on school science. The reported figure counts only questions with a picture (IMG).

Source: Lu et al. 2022, "Learn to Explain", arXiv 2209.09513; LLaVA's ``model_vqa_science`` and ``eval_science_qa``.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_json
from tasks.benchmarks.layout.scores import Item, Metric, Scores, unlabelled
from tasks.errors import UserError, shown
from tasks.prompts import IMAGE, LETTER
from tasks.rules.scienceqa import LETTERS, option_letter

FILES = FileNames(
    questions=("llava_test_CQM-A.json",), images=("images/test", "images"), labels=("problems.json", "*/problems.json")
)
_FAILED = "FAILED"


def prompt(row: Row) -> str:
    """The words of the model's prompt: context if there is one, question, options, and the option-letter prompt."""
    if "conversations" in row.values:
        turns: Any = row.values["conversations"]
        try:
            words = str(turns[0]["value"])
        except (LookupError, TypeError) as error:
            raise UserError(f"conversations must begin with a question, got {shown(turns)} in {row.where}.") from error
        return f"{words.replace(IMAGE, '').strip()}\n{LETTER}"
    hint = row.text("hint", "")
    choices: Any = row.values.get("choices") or ()
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    context = f"Context: {hint}\n" if hint else ""
    return f"{context}{row.text('question')}\n{options}\n{LETTER}"


def read(source: Source) -> list[Question]:
    """The questions; a label is ``(letter, number of choices)``.

    Choices are counted in ``problems.json`` if it is given, else in the prompt.
    """
    problems = read_json(source.labels) if source.labels else {}
    if not isinstance(problems, dict):
        raise UserError(f"labels must be ScienceQA's problems.json, got another value in {str(source.labels)!r}.")
    questions = []
    for number, row in enumerate(source.rows()):
        words = prompt(row)
        name = row.id("id") if "id" in row.values else str(number)
        picture = source.picture(row)
        recorded = f"{IMAGE}\n{words}" if picture else words
        label = _label(row, words, problems.get(str(name)))
        questions.append(Question(name, words, picture, "IMG" if picture else "text", label, recorded, row=row.plain()))
    return questions


def parse(text: str, n_choices: int = len(LETTERS)) -> str | None:
    """The option that an answer names; None if the rule finds none among the choices.

    Example:
        >>> parse("D. gold", 4), parse("D. gold", 3)
        ('D', None)
    """
    found = option_letter(text)
    return found if found in (None, *LETTERS[:n_choices]) else None


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """Accuracy on questions with a picture, as reported, and on all; a missing answer counts as wrong.

    Example:
        >>> score([Question("4", "?", category="text", label=("B", 2))], ["B"]).metrics[0].value
        100.0
    """
    if empty := unlabelled(questions, "scored with the answers in the question file or problems.json"):
        return empty
    right = [
        float(text is not None and parse(text, q.label[1]) == q.label[0])
        for q, text in zip(questions, answers, strict=True)
    ]
    lmms = [float(text is not None and _lmms(text) == q.label[0]) for q, text in zip(questions, answers, strict=True)]
    pictured = [q.picture is not None for q in questions]
    items = [Item("IMG", ok, 1.0, q.group) for ok, q, own in zip(right, questions, pictured, strict=True) if own]
    metrics = []
    for rule, values in (("official", right), ("lmms-eval", lmms)):
        image = [value for value, own in zip(values, pictured, strict=True) if own]
        for part, kept in (("IMG", image), ("all", values)):
            if kept:
                metrics.append(Metric("accuracy", part, 100 * sum(kept) / len(kept), len(kept), rule))
    failed = sum(text is None or option_letter(text) is None for text in answers)
    notes = (f"{failed} of {len(answers)} answers name no option",) if failed else ()
    return Scores(tuple(items), {"IMG": 100.0}, tuple(metrics), notes)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The file of right and wrong answers that LLaVA's script writes; empty without labels."""
    if any(question.label is None for question in questions):
        return {}
    found: dict[str, list[dict[str, Any]]] = {"correct": [], "incorrect": []}
    for question, text in zip(questions, answers, strict=True):
        words = _FAILED if text is None else text
        letter, n_choices = question.label
        recorded = "Unknown" if text is None else question.prompt
        entry = {
            "question_id": question.id, "parsed_ans": option_letter(words) or _other(words), "ground_truth": letter,
            "question": recorded, "pred": words, "is_multimodal": IMAGE in recorded,
        }  # fmt: skip
        found["correct" if parse(words, n_choices) == letter else "incorrect"].append(entry)
    return {"scienceqa_output.jsonl": json.dumps(found, indent=2).encode()}


def _other(text: str) -> str:
    """What the script records for an answer without option: a single letter after F, or that it failed."""
    found = re.findall(r"The answer is ([A-Z]).", text)
    return str(found[0]) if len(found) == 1 else _FAILED


def _lmms(text: str) -> str:
    """The option by lmms-eval's rule: the whole text, or a capital letter before a full stop."""
    return text[0] if len(text) >= 2 and text[0].isupper() and text[1] == "." else text


def _label(row: Row, words: str, problem: Any) -> tuple[str, int] | None:
    choices: Any = row.values.get("choices") if problem is None else problem.get("choices")
    answer: Any = row.values.get("answer") if problem is None else problem.get("answer")
    if choices is not None and isinstance(answer, int):
        if not isinstance(choices, list) or isinstance(answer, bool) or not 0 <= answer < len(choices) <= len(LETTERS):
            raise UserError(
                f"answer must be the number of one of at most {len(LETTERS)} choices, from 0, got {shown(answer)} of "
                f"{shown(choices)} for {row.where}."
            )
        return LETTERS[answer], len(choices)
    turns: Any = row.values.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    n_choices = next((i for i, letter in enumerate(LETTERS) if f"\n{letter}. " not in words), len(LETTERS))
    return str(turns[1].get("value")).strip(), n_choices
