"""Answer files in LLaVA's layout: reading, matching with questions, writing."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.benchmarks.layout.question import Id, Question
from tasks.benchmarks.layout.rows import Row, object_of, read_json, read_rows
from tasks.errors import UserError, shown
from tasks.prompts import IMAGE, LETTER, LETTER_CN, SHORT, UNANSWERABLE

_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # of the authors' ids
_ID_LENGTH = 22
_IDS = ("question_id", "questionId", "image", "id")
_FORMATS = {text.lower() for text in (SHORT, LETTER, LETTER_CN, UNANSWERABLE)}
_NO_PROMPT = "Unknown"  # what the ScienceQA script records for a question without answer
_TEXTS = ("text", "prediction", "answer", "pred")


class Answer(NamedTuple):
    """A row of an answer file: the question's id, its prompt if it is recorded, and the text."""

    id: Id
    text: str
    prompt: str | None = None
    row: Mapping[str, Any] = {}


def read_answers(path: Path) -> list[Answer]:
    """The answers in a file.

    It is JSONL or a JSON list of objects with an id (``question_id``, ``questionId``, ``image``) and a text (``text``,
    ``prediction``, ``answer``), a JSON object from ids to texts (MM-Vet), or the output of the ScienceQA script.

    Raises:
        UserError: If it is none of these.
    """
    if not path.is_file():
        raise UserError(f"answers must be an existing file, got {str(path)!r}. Check the path.")
    whole = _whole_object(path)
    if isinstance(whole, dict) and {"correct", "incorrect"} <= whole.keys():
        rows = _sorted_rows(whole, path)
    elif isinstance(whole, dict) and all(isinstance(text, str) for text in whole.values()):
        return [Answer(name, text) for name, text in whole.items()]
    else:
        rows = read_rows(path)
    if not rows:
        raise UserError(f"answers must have at least one row, got none in {str(path)!r}.")
    found = []
    for row in rows:
        text = next((name for name in _TEXTS if row.values.get(name) is not None), "text")
        prompt = row.values.get("prompt", row.values.get("question"))
        known = isinstance(prompt, str) and prompt != _NO_PROMPT
        found.append(Answer(row.id(*_IDS), row.text(text), prompt if known else None, row.values))
    return found


def match_answers(questions: Sequence[Question], answers: Sequence[Answer]) -> list[str | None]:
    """The text of the answer to each question; None where there is none.

    Questions that share an id, such as the two about a picture of MME, are told apart by their prompts.

    Raises:
        UserError: If an answer belongs to no question or records the prompt of another one, or a question has two
            different answers.

    Example:
        >>> match_answers([Question(1, "a?"), Question(2, "b?")], [Answer("2", "yes")])
        [None, 'yes']
    """
    by_id: dict[str, list[int]] = {}
    by_prompt: dict[tuple[str, str], deque[int]] = {}
    for index, question in enumerate(questions):
        by_id.setdefault(str(question.id), []).append(index)
        by_prompt.setdefault((str(question.id), question.prompt), deque()).append(index)
    found: list[str | None] = [None] * len(questions)
    for answer in answers:
        name = str(answer.id)
        places = by_id.get(name, [])
        if not places:
            raise UserError(
                f"answers must belong to the questions, got one for {answer.id!r}, which the questions do not have. "
                "Use the answers of the same benchmark and split."
            )
        if len(places) > 1:
            places = list(by_prompt.get((name, answer.prompt or ""), ()))
            if not places:
                raise UserError(
                    f"answers must record the prompt where questions share an id, got no question {answer.id!r} with "
                    "the prompt of the answer. Use the answers of the same questions."
                )
            if len(places) > 1:  # the same question twice: in order
                by_prompt[(name, answer.prompt or "")].popleft()
        if answer.prompt is not None and not _alike(answer.prompt, questions[places[0]].prompt):
            raise UserError(
                f"answers must belong to the questions, got the prompt {shown(answer.prompt, 60)} for {answer.id!r}, "
                f"whose question is {shown(questions[places[0]].prompt, 60)}. Use the answers of the same questions."
            )
        if found[places[0]] not in (None, answer.text):
            raise UserError(
                f"answers must have one answer for each question, got two different ones for {answer.id!r}. Remove one."
            )
        found[places[0]] = answer.text
    return found


def answer_rows(
    questions: Sequence[Question], texts: Sequence[str], model_id: str, ids: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of an answer file in LLaVA's layout; ``ids`` are the answers' ids, by default hashes of them.

    Example:
        >>> answer_rows([Question(3, "a?")], ["yes"], "smol", ["x"])[0]["text"]
        'yes'
    """
    rows = []
    for number, (question, text) in enumerate(zip(questions, texts, strict=True)):
        own = ids[number] if ids else answer_id(f"{model_id}\n{number}\n{question.id}\n{question.prompt}\n{text}")
        before = {"question_id": question.id, **({} if question.options is None else {"round_id": 0})}
        listed = {} if question.options is None else _listed(question.options)
        rows.append(
            {
                **before, "prompt": question.prompt, "text": text, **listed, "answer_id": own, "model_id": model_id,
                "metadata": {},
            }
        )  # fmt: skip
    return rows


def answer_id(text: str) -> str:
    """An id of 22 letters, the authors' alphabet, that depends only on ``text``.

    Example:
        >>> len(answer_id("a")), answer_id("a") == answer_id("a")
        (22, True)
    """
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    letters = []
    for _ in range(_ID_LENGTH):
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return "".join(reversed(letters))


def _alike(given: str, own: str) -> bool:
    """Whether two prompts may be of one question: one contains the other, or they share a line.

    Format prompts, which are the same for all questions, do not count.
    """
    first, second = (_lines(text) for text in (given, own))
    if not first or not second or " ".join(first) in " ".join(second) or " ".join(second) in " ".join(first):
        return True
    return bool(set(first) & set(second))


def _lines(prompt: str) -> list[str]:
    lines = (" ".join(line.split()).lower() for line in prompt.replace(IMAGE, "").split("\n"))
    return [line for line in lines if line and line not in _FORMATS]


def _listed(options: tuple[str, ...]) -> dict[str, Any]:
    return {"options": list(options), "option_char": list("ABCD"[: len(options)])}


def _sorted_rows(whole: Mapping[str, Any], path: Path) -> list[Row]:
    """The right and the wrong answers that the ScienceQA script lists."""
    found: list[Row] = []
    for name in ("correct", "incorrect"):
        if not isinstance(whole[name], list):
            raise UserError(f"answers must list {name} answers, got {shown(whole[name])} in {path.name!r}.")
        places = [f"entry {i} of {name!r} in {path.name}" for i in range(1, len(whole[name]) + 1)]
        found += [Row(object_of(one, where), where) for one, where in zip(whole[name], places, strict=True)]
    return found


def _whole_object(path: Path) -> Any:
    """The value of a file that is one JSON object over several lines or a single one; None for JSONL."""
    with path.open("rb") as file:
        first = file.readline(1 << 20)
        several = bool(file.read(1))
    if first.strip() == b"{" or (not several and b'"question_id"' not in first and path.suffix == ".json"):
        return read_json(path)
    return None
