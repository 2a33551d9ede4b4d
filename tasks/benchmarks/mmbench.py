"""MMBench dev: multiple choice on twenty abilities, each question asked once for every rotation of its options.

A server scores the upload. Where the file has the answers, CircularEval is computed here from answers that are letters:
a question counts if all its rotations are right. The server also asks ChatGPT which option a longer text means, so its
score may be higher.

Source: Liu et al. 2023, "MMBench", arXiv 2307.06281; LLaVA's ``model_vqa_mmbench`` and
    ``convert_mmbench_for_submission``.
"""

import binascii
import math
from base64 import b64decode
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source
from tasks.benchmarks.layout.scores import Item, Metric, Scores, answered, unlabelled
from tasks.benchmarks.layout.xlsx import xlsx_file
from tasks.errors import UserError, one_line
from tasks.example import Picture
from tasks.files import check_regular
from tasks.pictures import open_picture
from tasks.prompts import LETTER

FILES = FileNames(questions=("mmbench_dev_20230712.tsv", "mmbench_dev_[!c]*.tsv"))
LETTERS = ("A", "B", "C", "D")
CIRCULAR = "CircularEval of letters"
_ROTATION = 1_000_000  # rotations of a question have its index plus multiples of this
_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category", "L2-category")
_AT = 6  # the column of the predictions in LLaVA's upload


def prompt(row: Row) -> str:
    """The words of the model's prompt: hint if there is one, question, options, and the option-letter prompt."""
    return f"{words(row)}\n{LETTER}"


def read(source: Source) -> list[Question]:
    """The questions of the official TSV, or of a Hugging Face data set; labels are letters."""
    return read_with(source, LETTER)


def parse(text: str) -> str | None:
    """The option that an answer is: a letter, alone or before a full stop; None for other texts.

    Example:
        >>> parse(" B. "), parse("B. a cat"), parse("The cat")
        ('B', 'B', None)
    """
    bare = text.strip()
    return bare[0] if bare[:1] in LETTERS and bare[:1] and (len(bare) == 1 or bare[1] == ".") else None


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """The share of questions of which every rotation is right, and the share of right rows.

    Example:
        >>> asked = [Question(7, "?", label="A"), Question(1000007, "?", label="B"), Question(8, "?", label="C")]
        >>> score(asked, ["A", "C", "C"]).main
        50.0
    """
    if empty := unlabelled(questions, "a server scores the upload"):
        return empty
    texts = answered(questions, answers)
    right = [parse(text) == q.label for q, text in zip(questions, texts, strict=True)]
    whole: dict[int, bool] = {}
    of: dict[int, Question] = {}
    for question, ok in zip(questions, right, strict=True):
        index = int(question.id) % _ROTATION
        whole[index] = whole.get(index, True) and ok
        of.setdefault(index, question)
    items = tuple(Item("all", float(ok), 1.0, f"question {index}") for index, ok in whole.items())
    metrics = [Metric("accuracy", "all", 100 * sum(whole.values()) / len(whole), len(whole), CIRCULAR)]
    for category in dict.fromkeys(q.category for q in of.values()):
        own = [whole[index] for index, question in of.items() if question.category == category]
        metrics.append(Metric("accuracy", category or "none", 100 * sum(own) / len(own), len(own), CIRCULAR))
    metrics.append(Metric("accuracy", "all", 100 * sum(right) / len(right), len(right), "every row"))
    other = sum(parse(text) is None for text in texts)
    notes: tuple[str, ...] = ("the server's score may differ: it reads texts that are no letter with ChatGPT",)
    if other:
        notes += (f"{other} of {len(texts)} answers are no letter and count as wrong here",)
    return Scores(items, {"all": 100.0}, tuple(metrics), notes)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The Excel file for the server: the columns of the question file without pictures, with the predictions."""
    columns = [name for name in questions[0].row if name not in _DROPPED]
    rows = []
    for question, text in zip(questions, answers, strict=True):
        values = [_plain(question.row.get(name)) for name in columns]
        rows.append([*values[:_AT], text, *values[_AT:]])
    return {"mmbench.xlsx": xlsx_file([*columns[:_AT], "prediction", *columns[_AT:]], rows)}


def words(row: Row) -> str:
    """The prompt without the format prompt, as the answer file records it."""
    hint = row.values.get("hint")
    text = str(row.values.get("question"))
    if not is_none(hint):
        text = f"{hint}\n{text}"
    return "\n".join([text, *(f"{a}. {b}" for a, b in zip(LETTERS, options(row), strict=False))])


def options(row: Row) -> tuple[str, ...]:
    """The options of a row, up to the first that is missing."""
    found = []
    for letter in LETTERS:
        if is_none(row.values.get(letter)):
            break
        found.append(str(row.values[letter]))
    return tuple(found)


def is_none(value: object) -> bool:
    """True for null, NaN, and the texts nan and none in any case, as in LLaVA's script."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.lower() in ("nan", "none"))


def read_with(source: Source, tail: str) -> list[Question]:
    """The questions with another format prompt."""
    rows = source.rows() if source.is_parquet else _tsv_rows(source.questions[0])
    questions = []
    for row in rows:
        index = row.values.get("index")
        if isinstance(index, bool) or not isinstance(index, int):
            raise UserError(f"row must have a whole number 'index', got {index!r} in {row.where}. Check the layout.")
        answer = row.values.get("answer")
        text = words(row)
        picture = source.picture(row) if source.is_parquet else _decoded(row)
        questions.append(
            Question(
                index, f"{text}\n{tail}", picture, str(row.values.get("category") or ""),
                None if is_none(answer) else str(answer), text, options(row), row.plain() | {"image": None},
            )
        )  # fmt: skip
    return questions


def _tsv_rows(path: Path) -> list[Row]:
    """The rows of the official TSV, with pandas' rules for missing values, as in LLaVA's script."""
    try:
        check_regular(path)
        table = pd.read_table(path, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"questions must be MMBench's TSV, got {str(path)!r} ({one_line(error)}).") from error
    missing = [name for name in ("index", "question", "A", "B", "image") if name not in table]
    if missing or table.empty:
        raise UserError(
            f"questions must have rows and the columns of MMBench's TSV, got no {', '.join(missing) or 'row'}."
        )
    if "hint" not in table:
        table["hint"] = None
    records: list[dict[Any, Any]] = table.astype(object).to_dict("records")
    return [Row({str(k): v for k, v in one.items()}, f"row {i} of {path.name}") for i, one in enumerate(records, 1)]


def _decoded(row: Row) -> Picture:
    """The picture of a row, decoded from base64 on demand."""
    text = row.values["image"]
    if not isinstance(text, str):
        raise UserError(f"row must have a picture as base64, got {text!r} in {row.where}.")
    return Picture(f"picture of {row.where}", partial(_open, text, row.where))


def _open(text: str, where: str) -> Any:
    try:
        content = b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError(f"picture must be base64, got {text[:20]!r}... in {where} ({error}).") from error
    return open_picture(content, f"picture of {where}")


def _plain(value: Any) -> Any:
    return None if is_none(value) and not isinstance(value, str) else value
