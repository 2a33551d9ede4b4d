"""A judge grades answers with a number. LLaVA-Bench (in the wild) and MM-Vet are scored by one.

An answer that the judge's server rejects for good and a reply that cannot be read are counted and left out of the mean;
no grade is made up. Figures of two judges are not comparable, so every number of a judge carries its name.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.scores import Item, Metric, Scores, answered, unlabelled
from tasks.chat_server.connection import RejectedError

Grade = tuple[float, ...]
NOT_JUDGED = "not judged"
_LISTED = 3  # rejected answers that a note lists; the file of reviews has all


@runtime_checkable
class Judge(Protocol):
    """A language model that grades answers.

    Example:
        >>> class Kind:
        ...     def ask(self, prompt: str) -> str:
        ...         return "8 10"
        >>> isinstance(Kind(), Judge)
        True
    """

    def ask(self, prompt: str) -> str:
        """The reply to a prompt; ``RejectedError`` if the judge can never grade this one."""


class Review(NamedTuple):
    """A judge's reply about one answer, and the numbers in it; None if there are none."""

    question: Question
    reply: str
    grade: Grade | None
    rejection: str = ""
    """Why the judge's server does not accept the answer; empty if there is a reply."""

    @property
    def graded(self) -> Grade:
        """The grade; only for a review that has one."""
        assert self.grade is not None, self.question.id
        return self.grade


class Rubric(NamedTuple):
    """What a judge is asked about an answer, and how its replies become a score."""

    prompt: Callable[[Question, str], str]
    parse: Callable[[str], Grade | None]
    measure: Callable[[Sequence[Review]], tuple[Sequence[Item], Sequence[Metric]]]
    """Items and metrics of the reviews that have a grade."""
    needs: str
    """The files without which there is nothing to compare an answer with."""
    system: str = ""
    """The system message; none if empty."""
    bounded: bool = True
    """Whether the score has a largest value; see ``Scores``."""


@runtime_checkable
class JudgedModule(Protocol):
    """What the module of a judged benchmark has beside the names of all benchmarks."""

    RUBRIC: Rubric

    def review_files(self, reviews: Sequence[Review], answers: Sequence[str], judge: str) -> dict[str, bytes]:
        """The reviews in the authors' layout; ``answers`` are the ids of the answers, ``judge`` is the judge's name."""


def judge_prompts(rubric: Rubric, questions: Sequence[Question], answers: Sequence[str | None]) -> list[str]:
    """What a judge is asked about each answer.

    Raises:
        UserError: If a question has no answer.
    """
    texts = answered(questions, answers)
    return [rubric.prompt(question, text) for question, text in zip(questions, texts, strict=True)]


def review(rubric: Rubric, questions: Sequence[Question], answers: Sequence[str | None], judge: Judge) -> list[Review]:
    """The judge's grades of all answers.

    Example:
        >>> class Kind:
        ...     def ask(self, prompt: str) -> str:
        ...         return "0.5"
        >>> from tasks.benchmarks.mmvet import RUBRIC
        >>> review(RUBRIC, [Question(0, "What is x?", label=("-1", ("math",)))], ["x = 1"], Kind())[0].grade
        (0.5,)
    """
    found = []
    for question, prompt in zip(questions, judge_prompts(rubric, questions, answers), strict=True):
        try:
            reply = judge.ask(prompt)
            found.append(Review(question, reply, rubric.parse(reply)))
        except RejectedError as error:
            found.append(Review(question, "", None, str(error)))
    return found


def score_reviews(
    rubric: Rubric,
    questions: Sequence[Question],
    answers: Sequence[str | None],
    judge: Judge | None = None,
    *,
    reviews: Sequence[Review] = (),
) -> Scores:
    """The scores of reviews, which ``judge`` makes if it is given; only a note if there are neither."""
    if empty := unlabelled(questions, f"needs {rubric.needs}, and a judge"):
        return empty
    if judge is None and not reviews:
        return Scores(notes=("needs a judge",))
    found = list(reviews) if judge is None else review(rubric, questions, answers, judge)
    graded = [one for one in found if one.grade is not None]
    rejected = [one for one in found if one.rejection]
    unreadable = len(found) - len(graded) - len(rejected)
    items, metrics = rubric.measure(graded)
    counted, notes = [], []
    if rejected:
        listed = "; ".join(f"question {one.question.id} ({one.rejection})" for one in rejected[:_LISTED])
        more = f"; and {len(rejected) - _LISTED} more" if len(rejected) > _LISTED else ""
        notes.append(
            f"the judge's server rejects {len(rejected)} of {len(found)} answers, which are left out: {listed}{more}"
        )
        counted.append(Metric(NOT_JUDGED, "rejected", float(len(rejected)), len(found)))
    if unreadable:
        notes.append(f"{unreadable} of {len(found)} replies of the judge cannot be read and are left out")
        counted.append(Metric(NOT_JUDGED, "unreadable", float(unreadable), len(found)))
    return Scores(tuple(items), {"all": 100.0}, (*metrics, *counted), tuple(notes), rubric.bounded)
