"""A judge: anything that answers a prompt with a text. LLaVA-Bench (in the wild) and MM-Vet are scored by one."""

from typing import NamedTuple, Protocol, runtime_checkable

from tasks.benchmarks.layout.question import Question


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
        """The reply to a prompt."""


class Review(NamedTuple):
    """A judge's reply about one answer, and the numbers in it; None if it cannot be read."""

    question: Question
    reply: str
    grade: tuple[float, ...] | None
