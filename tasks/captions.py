"""The same question about a caption instead of the picture."""

from collections.abc import Sequence
from dataclasses import replace

from tasks.dataset import LazyExamples
from tasks.errors import UserError
from tasks.example import Example


def captioned(example: Example, number: int = 0) -> Example:
    """The example with a caption in place of its pictures: the caption, a line break, the same question.

    Id, group, split and labels stay the same, so that the two can be compared row by row. Boxes belong to the picture
    and are dropped.

    Args:
        example: An example with captions.
        number: Which caption, from 0.

    Raises:
        UserError: If the example has no such caption.

    Example:
        >>> scene = Example(
        ...     id="0", pictures=(), question="What is it?", answer="cat", group="0", captions=("A red cat.",)
        ... )
        >>> captioned(scene).context
        'A red cat.'
    """
    if not 0 <= number < len(example.captions):
        raise UserError(
            f"caption must be one of the {len(example.captions)} of example {example.id!r}, got number {number}. "
            "Captions count from 0."
        )
    return replace(example, pictures=(), boxes={}, focus=None, context=example.captions[number])


def captioned_examples(examples: Sequence[Example]) -> Sequence[Example]:
    """Every example with its first caption in place of its pictures, lazily.

    Raises:
        UserError: If an example has no caption; the message counts them.

    Example:
        >>> from tasks.scenes.datasets import scenes_dataset
        >>> captioned_examples(scenes_dataset(n=2).examples)[0].context.split(",")[0]
        'An orange cactus at the top left'
    """
    without = [example.id for example in examples if not example.captions]
    if without:
        raise UserError(
            f"captions must be given for every example, got none for {len(without)} of {len(examples)}, first "
            f"{without[0]!r}. Add a column caption or captions, give --captions, or drop these rows with --skip-bad."
        )
    return LazyExamples(len(examples), lambda index: captioned(examples[index]))
