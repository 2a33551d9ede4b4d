"""Scores of answers, from 0 to 1 (right), and a table of accuracies by question family with intervals."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import norm

from tasks.errors import UserError

_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(max(value - 1, 0)) for value, word in enumerate(_NUMBERS)}  # "none" is 0 in the public script
_CONTRACTIONS = {
    **{f"{stem}nt": f"{stem}n't" for stem in (
        "ai", "are", "ca", "could", "did", "does", "do", "had", "has", "have", "is", "might", "must", "need", "should",
        "was", "were", "wo", "would",
    )},
    "couldve": "could've", "hes": "he's", "hows": "how's", "im": "i'm", "ive": "i've", "shes": "she's",
    "thats": "that's", "theres": "there's", "theyre": "they're", "theyve": "they've", "whats": "what's",
    "wheres": "where's", "whos": "who's", "whove": "who've", "wouldve": "would've", "yall": "y'all",
    "youre": "you're", "youve": "you've",
}  # fmt: skip
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalise(answer: str) -> str:
    """The answer in VQAv2's normal form: lower case, digits for number words, no articles, no punctuation.

    Source: Antol et al. 2015, "VQA: Visual Question Answering", arXiv 1505.00468, and the punctuation rules of its
        public evaluation script.

    Example:
        >>> normalise("The two cats!")
        '2 cats'
    """
    given = text = answer.replace("\n", " ").replace("\t", " ").strip()
    comma_in_number = re.search(r"\d,\d", given) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if beside_space or comma_in_number else " ")
    text = re.sub(r"(?!<=\d)(\.)(?!\d)", "", text)  # the script's pattern: removes a full stop unless a digit follows
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def exact_match(prediction: str, answer: str) -> float:
    """1.0 if both are equal after ``normalise`` and not empty, else 0.0.

    Example:
        >>> exact_match("A cat.", "cat")
        1.0
    """
    return float(normalise(prediction) == normalise(answer) != "")


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Agreement with people: min(matches / 3, 1), averaged over leaving out each answer.

    Args:
        prediction: The model's answer.
        answers: People's answers, usually ten.

    Raises:
        UserError: If there is no answer.

    Source: Antol et al. 2015, arXiv 1505.00468; answers are always normalised, as in LLaVA-1.5's evaluation.

    Example:
        >>> vqa_accuracy("red", ["red"] * 2 + ["blue"] * 8)
        0.6
    """
    if not answers:
        raise UserError("answers must have at least one entry, got none.")
    if len(answers) == 1:
        return exact_match(prediction, answers[0])
    matches = np.array([normalise(answer) == normalise(prediction) for answer in answers])
    return float(np.minimum((matches.sum() - matches) / 3, 1).mean())


def option_letter(prediction: str, letters: str = "ABCDE") -> str | None:
    """The option that an answer names, or None.

    ``"A"``, ``"A."``, ``"(A)"``, ``"A: cat"`` and ``"The answer is A."`` count; the article in "A cat" does not.

    Source: Lu et al. 2022, "Learn to Explain" (ScienceQA), arXiv 2209.09513, as LLaVA-1.5's evaluation parses it.

    Example:
        >>> option_letter("The answer is (B)."), option_letter("A cat")
        ('B', None)
    """
    option = f"([{re.escape(letters)}])"
    patterns = (
        rf"{option}[.):]?",
        rf"\({option}\)(?:\W.*)?",
        rf"{option}[.):]\s.*",
        rf"(?:.*\b)?[Aa]nswer(?: is|:)\s*\(?{option}\)?(?:[.,:;)\s].*)?",
    )
    found = (re.fullmatch(pattern, prediction.strip(), flags=re.DOTALL) for pattern in patterns)
    return next((match[1] for match in found if match), None)


def yes_or_no(prediction: str) -> Literal["yes", "no"]:
    """``"no"`` if the first sentence has the word "no" or "not", else ``"yes"``, as in POPE.

    Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355.

    Example:
        >>> yes_or_no("No, there is a dog.")
        'no'
    """
    words = prediction.split(".")[0].replace(",", "").lower().split()
    return "no" if {"no", "not"} & set(words) else "yes"


def score_answer(prediction: str, answer: str | Sequence[str], family: str = "") -> float:
    """The score of a prediction by the rule of its question family.

    Args:
        prediction: The model's answer.
        answer: The expected answer, or several people's answers (then VQA accuracy).
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
        return vqa_accuracy(prediction, answer)
    if family == "choice":
        expected, given = (option_letter(text, "ABCDEFGHIJ") for text in (answer, prediction))
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
