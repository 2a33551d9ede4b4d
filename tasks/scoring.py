"""Scores of answers, from 0 to 1 (right), and a table of accuracies by question family with intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from tasks.errors import UserError
from tasks.rules.pope import yes_or_no
from tasks.rules.scienceqa import option_letter
from tasks.rules.vqav2 import accuracy, normalise


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both are equal after ``normalise`` and not empty, else 0.0.

    Example:
        >>> exact_match("A cat.", "cat")
        1.0
    """
    return float(normalise(prediction) == normalise(answer) != "")


def score_answer(prediction: str, answer: str | Sequence[str], family: str = "") -> float:
    """The score of a prediction by the rule of its question family.

    Args:
        prediction: The model's answer.
        answer: The expected answer, or several people's answers (then VQA accuracy in EvalAI's normal form).
        family: ``"choice"`` compares option letters, ``"exists"`` yes and no, any other the text (``exact_match``).

    Returns:
        0 to 1; 0 for an empty prediction.

    Raises:
        UserError: If the expected answer does not fit the family.

    Example:
        >>> score_answer("Yes, there is.", "yes", "exists")
        1.0
    """
    if not prediction.strip():
        return 0.0
    if not isinstance(answer, str):
        return accuracy(prediction, answer)
    if family == "choice":
        expected, given = (option_letter(text.strip(), "ABCDEFGHIJ") for text in (answer, prediction))
        if expected is None:
            raise UserError(f"answer must be an option letter for family 'choice', got {answer!r}.")
        return float(given == expected)
    if family == "exists":
        if normalise(answer) not in ("yes", "no"):
            raise UserError(f"answer must be yes or no for family 'exists', got {answer!r}.")
        return float(yes_or_no(prediction) == normalise(answer))
    return exact_match(prediction, answer)


def accuracy_by_family(scores: Sequence[float], families: Sequence[str], *, level: float = 0.95) -> pd.DataFrame:
    """Mean score of each question family and of all answers, with Wilson's interval.

    The interval assumes independent answers; for fractional scores (VQA accuracy) it is conservative.

    Args:
        scores: One score for each answer, 0 to 1.
        families: The family of each answer.
        level: Coverage of the interval.

    Returns:
        Columns ``family, score, lower, upper, n, interval``; families in order of appearance, then ``"all"``.

    Raises:
        UserError: If there is no score, one lies outside [0, 1], or the two lists differ in length.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22.

    Example:
        >>> accuracy_by_family([1.0, 0.0, 1.0], ["what", "what", "count"]).set_index("family").score.round(2).to_dict()
        {'what': 0.5, 'count': 1.0, 'all': 0.67}
    """
    if not scores or len(scores) != len(families):
        raise UserError(
            f"scores and families must have the same length, at least 1, got {len(scores)} and {len(families)}."
        )
    values = np.asarray(scores, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise UserError(f"scores must lie in [0, 1], got {values.min()} to {values.max()}.")
    names = np.asarray(families, dtype=object)
    rows = [(family, values[names == family]) for family in dict.fromkeys(families)] + [("all", values)]
    z = float(norm.ppf((1 + level) / 2))
    return pd.DataFrame(
        [
            (family, part.mean(), *_wilson(float(part.mean()), len(part), z), len(part), "wilson")
            for family, part in rows
        ],
        columns=["family", "score", "lower", "upper", "n", "interval"],
    )


def _wilson(mean: float, n: int, z: float) -> tuple[float, float]:
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * ((mean * (1 - mean) / n + z * z / (4 * n * n)) ** 0.5)
    return max(0.0, centre - half), min(1.0, centre + half)
