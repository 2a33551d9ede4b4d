"""A conversation: its pictures and turns, as every reader of training data returns it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.errors import UserError
from tasks.example import Example, Picture
from tasks.prompts import LETTER, SHORT


class UnusableSampleError(UserError):
    """A sample that cannot be trained on.

    Args:
        reason: The reason.
        sample: The sample's id, or None if it is unknown.
    """

    def __init__(self, reason: str, sample: str | None = None) -> None:
        super().__init__(reason)
        self.sample = sample


class Turn(NamedTuple):
    """A question of the user and the assistant's answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """One training sample.

    Args:
        id: Identifies it in messages.
        pictures: In the order of their placeholders; empty in text-only samples.
        turns: At least one.
        apart: Whether each turn attends to the pictures and itself but to no other turn. Several questions about one
            picture then share one sequence without attending to each other's answers.
        families: The family of each question, for scores; empty if unknown.
        shared: Text before the first question of every turn, attended to by all turns if ``apart``.
        placed: The number of pictures at the beginning of each question and each answer, alternately; empty if all
            stand before the first question.
        unread: The keys of the sample in its file that are not read.
    """

    id: str
    pictures: tuple[Picture, ...]
    turns: tuple[Turn, ...]
    apart: bool = False
    families: tuple[str, ...] = ()
    shared: str = ""
    placed: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()


def from_examples(examples: Sequence[Example], *, apart: bool = False, format_prompts: bool = True) -> Conversation:
    """Several questions about the same pictures as one conversation.

    Args:
        examples: At least one.
        apart: Whether turns are hidden from each other. Then each question has its own format prompt; otherwise only
            the first question of each format, as in LLaVA-1.5's data.
        format_prompts: Whether questions end in a format prompt.
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
    if not first.pictures and not apart:  # only the first turn has the caption
        caption = first.question.partition("\n")[0]
        turns = [turns[0], *(turn._replace(question=turn.question.removeprefix(f"{caption}\n")) for turn in turns[1:])]
    families = tuple(example.family for example in examples)
    name = first.id.rsplit("/", 1)[0] if len(examples) > 1 else first.id
    return Conversation(name, first.pictures, tuple(turns), apart, families)
