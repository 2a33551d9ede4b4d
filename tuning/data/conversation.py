"""A conversation: its turns and pictures, as every reader returns it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.errors import UserError
from tasks.example import Example, Picture
from tasks.prompts import LETTER, SHORT


def from_examples(examples: Sequence[Example], *, apart: bool = False, format_prompts: bool = True) -> Conversation:
    """Questions about the same pictures as one conversation.

    Where turns follow each other a format prompt stands on the first question of its format alone, as in LLaVA-1.5's
    data; where they stand apart each question has its own.
    """
    seen: set[str] = set()
    turns = []
    for example in examples:
        question = example.question
        for prompt in (SHORT, LETTER):
            if question.endswith(f"\n{prompt}"):
                if not format_prompts or (prompt in seen and not apart):
                    question = question.removesuffix(f"\n{prompt}")
                seen.add(prompt)
        turns.append(Turn(question, example.answer))
    first = examples[0]
    if not first.pictures and not apart:  # the caption is said once, in the first turn
        caption = first.question.partition("\n")[0]
        turns = [turns[0], *(replace_prefix(turn, f"{caption}\n") for turn in turns[1:])]
    families = tuple(example.family for example in examples)
    return Conversation(first.id.rsplit("/", 1)[0] if len(examples) > 1 else first.id, first.pictures, tuple(turns),
                        apart, families)  # fmt: skip


def replace_prefix(turn: Turn, prefix: str) -> Turn:
    """``turn`` without ``prefix`` before its question."""
    return turn._replace(question=turn.question.removeprefix(prefix))


class UnusableSampleError(UserError):
    """A sample that cannot be trained on, and why.

    Args:
        reason: What is the matter.
        sample: The sample's own id, where the raiser knows it.
    """

    def __init__(self, reason: str, sample: str | None = None) -> None:
        super().__init__(reason)
        self.sample = sample


class Turn(NamedTuple):
    """What the user says and what the assistant answers."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One training sample.

    Args:
        id: Names it in messages.
        pictures: Shown before the first question; none in text-only samples.
        turns: At least one.
        apart: Whether each turn sees the pictures and itself but no other turn. Several questions about one picture
            then fit in one sequence without telling each other the answers, at the cost of the picture once.
        families: The kind of each question, for scores; empty if unknown.
        shared: Text that starts the first question of every turn and is seen by all turns where they stand apart.
    """

    id: str
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    apart: bool = False
    families: tuple[str, ...] = ()
    shared: str = ""
