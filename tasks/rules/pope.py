"""POPE's rule: yes or no by the first sentence; accuracy, precision, recall and F1 of "yes".

Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355, and its
    public evaluation script.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tasks.errors import UserError


class PopeScores(NamedTuple):
    """Scores of one category of questions; "yes" is the positive answer."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes: float
    """Share of questions answered with yes."""
    n: int


def yes_or_no(prediction: str) -> Literal["yes", "no"]:
    """``"no"`` if "No", "not" or "no" is a word of the first sentence, else ``"yes"``; case matters, as in the script.

    Example:
        >>> yes_or_no("No, there is a dog."), yes_or_no("NO")
        ('no', 'yes')
    """
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def score(predictions: Sequence[str], labels: Sequence[str]) -> PopeScores:
    """Scores of predictions against labels ``"yes"`` and ``"no"``; precision, recall and F1 are 0 where undefined.

    Raises:
        UserError: If there is no label, another label, or another number of predictions.

    Example:
        >>> score(["Yes", "No", "Yes"], ["yes", "no", "no"]).f1.__round__(3)
        0.667
    """
    if not labels or len(labels) != len(predictions) or not set(labels) <= {"yes", "no"}:
        raise UserError(
            f"labels must be yes or no, one for each of {len(predictions)} predictions, got {len(labels)} labels."
        )
    said = [yes_or_no(prediction) for prediction in predictions]
    both = sum(mine == "yes" == right for mine, right in zip(said, labels, strict=True))
    positive, wanted = said.count("yes"), list(labels).count("yes")
    precision, recall = both / max(positive, 1), both / max(wanted, 1)
    return PopeScores(
        accuracy=sum(mine == right for mine, right in zip(said, labels, strict=True)) / len(labels),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if both else 0.0,
        yes=positive / len(labels),
        n=len(labels),
    )
