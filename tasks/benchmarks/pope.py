"""POPE: "Is there a ... in the image?" about COCO pictures.

Absent objects are drawn at random, by frequency, or by co-occurrence with those in the picture. The
reported figure is the mean of the three F1.

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355; LLaVA's
    ``eval_pope``, which matches labels to questions by their order.
"""

from collections.abc import Sequence
from pathlib import Path

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import FileNames, Row, Source, read_rows
from tasks.benchmarks.layout.scores import Item, Metric, Scores, answered, unlabelled
from tasks.errors import UserError
from tasks.prompts import SHORT
from tasks.rules import pope as rule

FILES = FileNames(
    questions=("llava_pope_test.jsonl",),
    images=("val2014", "images"),
    labels=("coco", "coco_pope_*.json"),
)


def prompt(row: Row) -> str:
    """The words of the model's prompt: ``text`` of LLaVA's file, or the question with the short-answer prompt."""
    return row.text("text") if "text" in row.values else f"{row.text('question')}\n{SHORT}"


def read(source: Source) -> list[Question]:
    """The questions; labels come from the files ``coco_pope_CATEGORY.json``, row by row within a category."""
    rows = source.rows()
    labels = _labels(source.labels) if source.labels else {}
    taken = dict.fromkeys(labels, 0)
    questions = []
    for row in rows:
        category = row.text("category")
        label = row.text("answer").strip().lower() if "answer" in row.values else None
        if label is None and category in labels:
            label = _next(labels[category], taken[category], row, category)
            taken[category] += 1
        questions.append(
            Question(row.id("question_id"), prompt(row), source.picture(row), category, label, row=row.plain())
        )
    for category, listed in labels.items():
        if 0 < taken[category] < len(listed):
            raise UserError(
                f"labels must have one row for each question, got {len(listed)} for {taken[category]} questions of "
                f"{category!r}. Use the labels of the same version of POPE."
            )
    return questions


def parse(text: str) -> str:
    """Yes or no by the official rule: case matters, only the first sentence counts."""
    return rule.yes_or_no(text)


def score(questions: Sequence[Question], answers: Sequence[str | None]) -> Scores:
    """Mean over categories of the F1 of "yes"; all scores of each category; lmms-eval's pooled ones.

    Example:
        >>> asked = [Question(1, "?", category="random", label="yes"), Question(2, "?", category="random", label="no")]
        >>> score(asked, ["Yes", "No"]).main
        100.0
    """
    if empty := unlabelled(questions, "scored with coco_pope_*.json; name their folder with --labels"):
        return empty
    texts = answered(questions, answers)
    categories = list(dict.fromkeys(q.category for q in questions))
    items, metrics = [], []
    for category in categories:
        own = [(q, text) for q, text in zip(questions, texts, strict=True) if q.category == category]
        found = rule.score([text for _, text in own], [q.label for q, _ in own])
        for name in ("f1", "accuracy", "precision", "recall", "yes"):
            metrics.append(Metric(name, category, 100 * float(getattr(found, name)), found.n))
        for question, text in own:
            said, wanted = parse(text) == "yes", question.label == "yes"
            items.append(Item(category, 2.0 * (said and wanted), float(said) + float(wanted), question.group))
    weights = {category: 100 / len(categories) for category in categories}
    scores = Scores(tuple(items), weights, ())
    means = [
        Metric(name, "mean", sum(m.value for m in metrics if m.name == name) / len(categories), len(questions))
        for name in ("f1", "accuracy")
    ]
    notes = () if len(categories) == 3 else (f"the mean is over {len(categories)} of POPE's three categories",)
    return Scores(scores.items, weights, (*means, *metrics, *_lmms(questions, texts)), notes)


def write_submission(questions: Sequence[Question], answers: Sequence[str | None], source: Source) -> dict[str, bytes]:
    """Nothing: POPE has no server."""
    return {}


def _lmms(questions: Sequence[Question], texts: Sequence[str]) -> list[Metric]:
    """lmms-eval's scores: the text must be the label, rows are pooled, and its yes ratio is that of the labels."""
    said = [text.lower().strip() for text in texts]
    wanted = [question.label for question in questions]
    pairs = list(zip(said, wanted, strict=True))
    both, false_yes, false_no = pairs.count(("yes", "yes")), pairs.count(("yes", "no")), pairs.count(("no", "yes"))
    precision = both / (both + false_yes) if both + false_yes else 0.0
    recall = both / (both + false_no) if both + false_no else 0.0
    values = {
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "accuracy": sum(mine == right for mine, right in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "yes": wanted.count("yes") / len(wanted),
    }
    return [Metric(name, "all", 100 * value, len(pairs), "lmms-eval") for name, value in values.items()]


def _labels(path: Path) -> dict[str, list[Row]]:
    """The label rows of each category."""
    files = sorted(path.glob("coco_pope_*.json")) if path.is_dir() else sorted(path.parent.glob("coco_pope_*.json"))
    if not files:
        raise UserError(f"labels must be a folder with coco_pope_*.json, got none in {str(path)!r}.")
    return {file.stem.removeprefix("coco_pope_"): read_rows(file) for file in files}


def _next(listed: Sequence[Row], number: int, row: Row, category: str) -> str:
    """The label of the next question of a category."""
    if number >= len(listed):
        raise UserError(
            f"labels must have one row for each question, got only {len(listed)} of {category!r} at {row.where}. Use "
            "the labels of the same version of POPE."
        )
    own = listed[number]
    if own.values.get("image") != row.values.get("image"):
        raise UserError(
            f"labels must be in the order of the questions, got the picture {own.values.get('image')!r} in {own.where} "
            f"for {row.where}. Use the labels of the same version of POPE."
        )
    label = own.text("label")
    if label not in ("yes", "no"):
        raise UserError(f"label must be yes or no, got {label!r} in {own.where}.")
    return label
