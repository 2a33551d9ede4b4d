"""A question of a benchmark, in the words that the model is asked."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.example import Example, Picture

Id = str | int


@dataclass(frozen=True)
class Question:
    r"""One question: what the model is asked, and what its score and its upload need.

    Example:
        >>> question = Question("7", "Is there a cat in the image?\nAnswer with a single word or phrase.")
        >>> question.example(0).pictures
        ()
    """

    id: Id
    text: str
    """The user's words with the response-format prompt, without picture placeholders."""
    picture: Picture | None = None
    category: str = ""
    label: Any = None
    """The expected answer in the benchmark's own form; None if it is not known."""
    recorded: str | None = None
    """The prompt as the answer file records it; None for ``text``."""
    options: tuple[str, ...] | None = None
    """The options, where the answer file lists them."""
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The values of the question file, without pictures."""

    @property
    def prompt(self) -> str:
        """The prompt as the answer file records it."""
        return self.text if self.recorded is None else self.recorded

    @property
    def group(self) -> str:
        """What intervals draw together: the questions about one picture."""
        return self.picture.key if self.picture else f"question {self.id}"

    def example(self, number: int) -> Example:
        """The question as an ``Example`` with a unique id."""
        pictures = (self.picture,) if self.picture else ()
        answer = self.label if isinstance(self.label, str) else ""
        return Example(f"{number}:{self.id}", pictures, self.text, answer, self.group, family=self.category)


def labels_digest(questions: Iterable[Question]) -> str:
    """A hash of the labels and categories of questions, from files or from the question file itself.

    Example:
        >>> labels_digest([Question(1, "a?", label="yes")]) == labels_digest([Question(1, "a?", label="no")])
        False
    """
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr((question.category, question.label)).encode())
    return digest.hexdigest()[:16]
