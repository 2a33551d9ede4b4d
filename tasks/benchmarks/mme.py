"""MME: two yes-no questions about each picture, ten categories of perception and four of cognition.

Source: Fu et al. 2023, "MME", arXiv 2306.13394, its ``calculation.py``, and LLaVA's ``convert_answer_to_mme``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_bytes
from tasks.benchmarks.layout.scores import Item, Metric, Scores, answered, unlabelled
from tasks.errors import UserError
from tasks.prompts import SHORT
from tasks.readers.parse import decode_text

FILES = FileNames(
    questions=("llava_mme.jsonl",),
    images=("MME_Benchmark_release_version", "images"),
    labels=("MME_Benchmark_release_version",),
)
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ASK = " Please answer yes or no."  # the benchmark's own tail, which LLaVA replaces
Verdict = Literal["yes", "no", "other"]
_MOST = 2.0  # points of a question


def prompt(row: Row) -> str:
    """The words of the model's prompt: the short-answer prompt in place of "Please answer yes or no."."""
    return row.text("text") if "text" in row.values else f"{row.text('question').replace(ASK, '').strip()}\n{SHORT}"


def read(source: Source) -> list[Question]:
    """The questions; labels come from the text files beside the benchmark's pictures."""
    labels = _labels(source.labels) if source.labels else {}
    questions = []
    for row in source.rows():
        name, words = row.id("question_id"), prompt(row)
        category = row.text("category", str(name).split("/")[0])
        given = row.text("answer", "") or _find(labels, category, str(name), words)
        label = given.strip().lower().rstrip(".") if given else None
        if label not in (None, "yes", "no"):
            raise UserError(f"label must be yes or no, got {given!r} in {row.where}.")
        questions.append(Question(name, words, source.picture(row), category, label, row=row.plain()))
    return questions


def parse(text: str) -> Verdict:
    """Yes or no as the whole text or within its first four characters, in any case.

    Example:
        >>> parse("Yes, it is"), parse("It is not"), parse("Know"), parse(" no")
        ('yes', 'other', 'no', 'no')
    """
    return _verdict(text.lower())


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """The perception score (2,000 at most), as reported; cognition (800 at most), and each category (200 at most).

    A category scores 100 x (share of right answers + share of pictures with both answers right).

    Example:
        >>> asked = [Question("count/a.png", w, category="count", label=v) for w, v in (("1?", "yes"), ("2?", "no"))]
        >>> score(asked, ["Yes", "Yes"]).main
        50.0
    """
    if empty := unlabelled(questions, "scored with MME_Benchmark_release_version; name its folder with --labels"):
        return empty
    texts = answered(questions, answers)
    unknown = sorted({q.category for q in questions} - {*PERCEPTION, *COGNITION})
    if unknown:
        raise UserError(f"category must be one of MME's fourteen, got {unknown[0]!r}. Use MME's question file.")
    official = _items(questions, [parse(text) for text in texts])
    weights = {name: 100.0 * _MOST for name in PERCEPTION if any(q.category == name for q in questions)}
    metrics = _metrics(questions, official, "official")
    metrics += _metrics(questions, _items(questions, [_lmms(text) for text in texts]), "lmms-eval")
    kept = tuple(item for item in official if item.stratum in weights)
    notes = () if len(weights) == len(PERCEPTION) else (f"only {len(weights)} of 10 categories of perception",)
    return Scores(kept, weights, tuple(metrics), notes)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """The text files that ``calculation.py`` reads, one for each category; empty without labels."""
    if any(question.label is None for question in questions):
        return {}
    lines: dict[str, list[str]] = {}
    for question, text in zip(questions, answered(questions, answers), strict=True):
        words = (text.replace("\t", " ").replace("\n", " "), question.label.capitalize())
        asked = f"{_bare(question.text)}{ASK}"
        lines.setdefault(question.category, []).append("\t".join((_file(str(question.id)), asked, words[1], words[0])))
    return {f"{name}.txt": ("\n".join(own) + "\n").encode() for name, own in lines.items()}


def _verdict(text: str) -> Verdict:
    if text in ("yes", "no"):
        return text  # type: ignore[return-value]
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"


def _lmms(text: str) -> Verdict:
    """lmms-eval's reading: spaces and full stops go first, and y and n count."""
    bare = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(bare) or _verdict(bare)  # type: ignore[return-value]


def _items(questions: Sequence[Question], verdicts: Sequence[Verdict]) -> list[Item]:
    """One item for each question: 1 of 2 if it is right, and 1 more if both questions about the picture are."""
    right = [verdict == q.label for q, verdict in zip(questions, verdicts, strict=True)]
    pairs: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        pairs.setdefault(f"{question.category}/{_file(str(question.id))}", []).append(index)
    plus = [0.0] * len(questions)
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise UserError(
                f"MME must have two questions about each picture, got {len(pair)} for {name!r}. Use an even --limit."
            )
        for index in pair:
            plus[index] = float(right[pair[0]] and right[pair[1]])
    return [
        Item(q.category, ok + both, _MOST, f"{q.category}/{q.id}")
        for q, ok, both in zip(questions, right, plus, strict=True)
    ]


def _metrics(questions: Sequence[Question], items: Sequence[Item], rule: str) -> list[Metric]:
    found: dict[str, list[float]] = {}
    for item in items:
        found.setdefault(item.stratum, []).append(item.above)
    values = {name: 100 * sum(own) / len(own) for name, own in found.items()}
    totals = []
    for total, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        own = [name for name in names if name in values]
        if own:
            n = sum(len(found[name]) for name in own)
            totals.append(Metric("score", total, sum(values[name] for name in own), n, rule))
    return totals + [Metric("score", name, value, len(found[name]), rule) for name, value in values.items()]


def _file(name: str) -> str:
    return f"{name.rsplit('/', 1)[-1].split('.')[0]}.txt"


def _bare(words: str) -> str:
    return words.replace(SHORT, "").strip()


def _labels(folder: Path) -> dict[tuple[str, str, str], str]:
    """The answers by category, text file and question."""
    if not folder.is_dir():
        raise UserError(f"labels must be the folder of MME's pictures and answers, got {str(folder)!r}.")
    found = {}
    for category in sorted(path for path in folder.iterdir() if path.is_dir()):
        beside = category / "questions_answers_YN"
        for path in sorted((beside if beside.is_dir() else category).glob("*.txt")):
            for line in decode_text(read_bytes(path)).splitlines():
                words, _, answer = line.strip().partition("\t")
                found[category.name, path.name, " ".join(words.split())] = answer
    return found


def _find(labels: dict[tuple[str, str, str], str], category: str, name: str, words: str) -> str | None:
    """The label of a question; the benchmark writes one or two spaces before its tail."""
    return labels.get((category, _file(name), " ".join(f"{_bare(words)}{ASK}".split())))
