"""Scores of a benchmark as sums over questions, so that every score has an interval.

The main score is the sum over strata of weight x (sum of ``above`` / sum of ``below``). A plain accuracy has one
stratum and ``below`` 1; POPE's mean of three F1 has three, with ``above`` 2 x true positives; MME has one for each
category. Except for grades relative to a reference, ``above`` is never larger than ``below``, so a score lies between 0
and the sum of the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tasks.benchmarks.layout.question import Question
from tasks.errors import UserError

OFFICIAL, LMMS_EVAL = "official", "lmms-eval"


class Item(NamedTuple):
    """What one question adds to the main score."""

    stratum: str
    above: float
    below: float
    group: str
    """Questions about one picture; intervals draw them together."""


class Metric(NamedTuple):
    """One number of a benchmark."""

    name: str
    part: str
    """The category, or ``all``."""
    value: float
    n: int
    rule: str = OFFICIAL
    """Whose rule: ``official``, ``lmms-eval``, or a named one of ours."""


@dataclass(frozen=True)
class Scores:
    """The scores of one answer file.

    Example:
        >>> items = (Item("all", 1.0, 1.0, "a"), Item("all", 0.0, 1.0, "b"))
        >>> Scores(items, {"all": 100.0}, ()).main
        50.0
    """

    items: tuple[Item, ...] = ()
    """One for each scored question; empty if the benchmark cannot be scored here."""
    weights: Mapping[str, float] = field(default_factory=lambda: {"all": 100.0})
    metrics: tuple[Metric, ...] = ()
    notes: tuple[str, ...] = ()
    bounded: bool = True
    """Whether ``above`` is at most ``below`` in every item that could be, so that the score has a largest value."""

    @property
    def highest(self) -> float:
        """The largest possible score; infinity if there is none."""
        return float(sum(self.weights.values())) if self.bounded else float("inf")

    @property
    def main(self) -> float | None:
        """The score as papers report it; None if it cannot be computed here."""
        if not self.items:
            return None
        total = 0.0
        for stratum, weight in self.weights.items():
            above, below = self.sums(stratum)
            total += weight * above / below if below else 0.0
        return total

    def sums(self, stratum: str) -> tuple[float, float]:
        """The sums of ``above`` and ``below`` of a stratum."""
        own = [item for item in self.items if item.stratum == stratum]
        return sum((item.above for item in own), 0.0), sum((item.below for item in own), 0.0)


def mean_scores(
    questions: Sequence[Question],
    values: Sequence[float],
    *,
    name: str = "accuracy",
    parts: Mapping[str, Callable[[Question], str | None]] | None = None,
    others: Mapping[str, Sequence[float]] | None = None,
    notes: tuple[str, ...] = (),
) -> Scores:
    """The mean of one value from 0 to 1 for each question, in per cent, and the means of parts.

    Args:
        questions: The questions.
        values: By the official rule.
        name: The name of the metric.
        parts: Functions that give the part of a question by the name of the division; None leaves it out.
        others: Values by other rules, by the rule's name.
        notes: Sentences for the reader.

    Example:
        >>> two = [Question(1, "a", category="x"), Question(2, "b", category="y")]
        >>> [(m.part, m.value) for m in mean_scores(two, [1.0, 0.0], parts={"": lambda q: q.category}).metrics]
        [('all', 50.0), ('x', 100.0), ('y', 0.0)]
    """
    items = tuple(Item("all", float(v), 1.0, q.group) for q, v in zip(questions, values, strict=True))
    metrics = [Metric(name, "all", _percent(values), len(values))]
    for part in (parts or {}).values():
        found: dict[str, list[float]] = {}
        for question, value in zip(questions, values, strict=True):
            if (where := part(question)) is not None:
                found.setdefault(where, []).append(float(value))
        metrics += [Metric(name, where, _percent(own), len(own)) for where, own in found.items()]
    metrics += [Metric(name, "all", _percent(own), len(own), rule) for rule, own in (others or {}).items()]
    return Scores(items, {"all": 100.0}, tuple(metrics), notes)


def answered(questions: Sequence[Question], answers: Sequence[str | None]) -> list[str]:
    """The answers, if every question has one.

    Raises:
        UserError: If a question has no answer.
    """
    found = [answer for answer in answers if answer is not None]
    if len(found) < len(questions):
        first = next(question for question, answer in zip(questions, answers, strict=True) if answer is None)
        raise UserError(
            f"answers must cover every question, got none for {len(questions) - len(found)} of {len(questions)}, the "
            f"first is {first.id!r}. Answer all of them, or score fewer with --limit."
        )
    return found


def unlabelled(questions: Sequence[Question], sentence: str) -> Scores | None:
    """Scores with only a note if no question has a label; None if all have one.

    Raises:
        UserError: If only some have one.
    """
    without = [question for question in questions if question.label is None]
    if without and len(without) < len(questions):
        raise UserError(
            f"labels must cover every question, got none for {len(without)} of {len(questions)}, the first is "
            f"{without[0].id!r}. Use the labels of the same split."
        )
    return Scores(notes=(sentence,)) if without else None


def _percent(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values) if len(values) else 0.0
