"""Pairs of a benchmark's questions: ``benchmark:NAME=FOLDER`` as the data of a sweep.

The two questions of a pair have the same words and category, other pictures and other answers, such as "Is there a
dog in the image?" about a picture with a dog and one without. So the foil, the answer to the second question, is the
right answer to the corrupt run.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from tasks.example import Example


class QuestionPair(NamedTuple):
    """Two questions with the same words; ``corrupt`` keeps its own answer."""

    clean: Example
    corrupt: Example


def pair_questions(examples: Iterable[Example], *, seed: int, limit: int | None = None) -> list[QuestionPair]:
    """Pairs of questions with equal words and category, and different pictures and answers.

    Questions are taken in a random order. Each is paired with the next one that fits; a picture is in one pair at
    most, so pairs are independent. Cases and spaces at the ends of answers do not count as a difference. Questions
    without an answer, or without exactly one picture, are left out.

    Args:
        examples: The questions; ``family`` and the label ``category`` tell kinds of questions apart.
        seed: Of the order.
        limit: Largest number of pairs.

    Returns:
        The pairs in the random order; empty if none fit.

    Example:
        >>> from tasks.example import Picture
        >>> pictures = [Picture(name, lambda: None) for name in "ab"]
        >>> asked = [Example(p.key, (p,), "A dog?", answer, p.key) for p, answer in zip(pictures, ("yes", "no"))]
        >>> [(pair.clean.answer, pair.corrupt.answer) for pair in pair_questions(asked, seed=1)]
        [('yes', 'no')]
    """
    usable = [one for one in examples if len(one.pictures) == 1 and one.answer.strip()]
    order = [usable[int(index)] for index in np.random.default_rng(seed).permutation(len(usable))]
    kinds: dict[tuple[object, ...], list[Example]] = {}
    places = []
    for one in order:
        own = kinds.setdefault((one.question, one.family, one.labels.get("category")), [])
        places.append((own, len(own)))
        own.append(one)
    taken: set[str] = set()
    pairs: list[QuestionPair] = []
    for clean, (alike, place) in zip(order, places, strict=True):
        if limit is not None and len(pairs) == limit:
            break
        if clean.pictures[0].key in taken:
            continue
        corrupt = _partner(clean, islice(alike, place + 1, None), taken)
        if corrupt is not None:
            pairs.append(QuestionPair(clean, corrupt))
            taken |= {clean.pictures[0].key, corrupt.pictures[0].key}
    return pairs


def capitalised(pair: QuestionPair) -> QuestionPair:
    """The pair with answers that begin with a capital letter."""
    return QuestionPair(*(replace(one, answer=one.answer.strip()[:1].upper() + one.answer.strip()[1:]) for one in pair))


def _partner(clean: Example, others: Iterable[Example], taken: set[str]) -> Example | None:
    """The first of some questions with another answer and a free picture."""
    used = taken | {clean.pictures[0].key}
    for other in others:
        if other.pictures[0].key not in used and _plain(other.answer) != _plain(clean.answer):
            return other
    return None


def _plain(answer: str) -> str:
    return " ".join(answer.casefold().split())
