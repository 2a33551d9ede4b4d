"""Examples: pictures, which are opened on demand, a question, the answer, and labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from PIL import Image

Label = str | int | float | bool
_SHARES = 1.01  # the largest corner of a box in shares


class Box(NamedTuple):
    """A rectangle in pixels of the original picture; ``right`` and ``bottom`` are exclusive.

    Example:
        >>> Box(left=2, top=2, right=20, bottom=20)
        Box(left=2, top=2, right=20, bottom=20)
    """

    left: float
    top: float
    right: float
    bottom: float


def are_shares(corners: Sequence[float]) -> bool:
    """Whether a box is written in shares of the picture, which readers refuse: no corner lies beyond one pixel.

    As shares it is a part of the picture, as pixels less than its first pixel. Shares may be rounded up.

    Example:
        >>> are_shares((0.1, 0.2, 0.5, 0.75)), are_shares((64, 96, 320, 360))
        (True, False)
    """
    return max(corners) <= _SHARES


@dataclass(frozen=True)
class Picture:
    """A picture that is opened on demand.

    Args:
        key: The name of the picture in messages and tables.
        open: Returns the picture in RGB.

    Example:
        >>> from PIL import Image
        >>> red = Picture("red", lambda: Image.new("RGB", (40, 30), "red"))
        >>> red.open().size
        (40, 30)
    """

    key: str
    open: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Example:
    """One question about zero or more pictures.

    Args:
        id: Unique in its data set.
        pictures: In the order of their placeholders in the prompt; empty for text-only examples.
        question: The user's words with the response-format prompt, without picture placeholders.
        answer: The expected answer.
        group: Splits never separate examples of one group, such as those of one picture.
        split: ``"train"``, ``"test"``, or another name.
        labels: Probe targets by name.
        boxes: Named rectangles in the first picture.
        focus: The name of the box that object-level labels describe, or None.
        family: The kind of question, for scores by family.
        captions: Sentences that describe the picture.
        context: Text that precedes the question in the user's turn, on lines of its own, such as a caption in place of
            the picture.

    Example:
        >>> Example(id="0", pictures=(), question="Is the sky blue?", answer="yes", group="0").split
        'test'
    """

    id: str
    pictures: tuple[Picture, ...]
    question: str
    answer: str
    group: str
    split: str = "test"
    labels: Mapping[str, Label] = field(default_factory=dict)
    boxes: Mapping[str, Box] = field(default_factory=dict)
    focus: str | None = None
    family: str = ""
    captions: tuple[str, ...] = ()
    context: str = ""


@dataclass(frozen=True)
class Target:
    """A label that probes read.

    Args:
        name: Key into ``Example.labels``.
        scope: ``"object"`` if it describes the box in focus, ``"image"`` if it describes the picture.
        kind: ``"class"`` for unordered values, ``"continuous"`` for real numbers.

    Example:
        >>> Target("colour", scope="object")
        Target(name='colour', scope='object', kind='class')
    """

    name: str
    scope: Literal["image", "object"] = "image"
    kind: Literal["class", "continuous"] = "class"
