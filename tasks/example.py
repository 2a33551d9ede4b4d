"""What a model is asked: one picture (or several, or none), a question, and what is known about them.

Everything downstream (inputs, capture, probes, interventions, tuning) takes these frozen records and nothing else.
Pictures are opened only when they are needed, so a data set of any size costs no memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from PIL import Image

Label = str | int | float | bool


class Box(NamedTuple):
    """A rectangle in pixels of the original picture; ``right`` and ``bottom`` are exclusive."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Picture:
    """A picture that is opened on demand.

    Args:
        key: Names the pixels: equal keys mean the same picture, which is then run through the model once.
        open: Returns the picture in RGB.
    """

    key: str
    open: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Example:
    """One question about zero or more pictures.

    Args:
        id: Unique in its data set.
        pictures: In the order of their placeholders in the prompt; empty for text-only examples.
        question: The user's words, with the response-format prompt, without the picture placeholder.
        answer: The expected answer.
        group: Examples that share a group (the same picture, say) never stand on both sides of a split.
        split: ``"train"``, ``"test"``, or any name a data set uses.
        labels: Probe targets by name.
        boxes: Named rectangles in the first picture.
        focus: The box that object-level labels speak about, or None.
        family: The kind of question, for scores by family.
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


@dataclass(frozen=True)
class Target:
    """A label that probes try to read.

    Args:
        name: Key into ``Example.labels``.
        scope: ``"object"`` if it belongs to the focused box, ``"image"`` if to the picture as a whole.
        kind: ``"class"`` for unordered values, ``"continuous"`` for real numbers.
    """

    name: str
    scope: Literal["image", "object"] = "image"
    kind: Literal["class", "continuous"] = "class"
