"""Data sets: a lazy sequence of examples, the targets that can be read from them, and a digest that names it all.

The embedded data sets are made of scenes. An example is made when it is asked for and forgotten afterwards, so memory
stays flat however many there are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.errors import UserError
from tasks.example import Box, Example, Label, Target
from tasks.lazy import LazyExamples
from tasks.prompts import CAPTION
from tasks.scenes.questions import FAMILIES, Family, ask, ask_for_caption
from tasks.scenes.scene import COLOURS, NOUNS, SIZE, Scene, Split, make_scene

OBJECT_TARGETS = tuple(Target(name, scope="object") for name in ("kind", "category", "colour", "place", "drawing"))
SCENE_TARGETS = (*OBJECT_TARGETS, Target("count", scope="image"))


@dataclass(frozen=True)
class Dataset:
    """Examples and what can be asked of their activations.

    Args:
        name: For people.
        examples: May be lazy: indexed and counted, not held.
        targets: The labels that probes may read.
        digest: Changes whenever anything does that could change a result.
    """

    name: str
    examples: Sequence[Example] = field(repr=False)
    targets: tuple[Target, ...]
    digest: str

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def target(self, name: str) -> Target:
        """The target called ``name``.

        Raises:
            ValueError: If there is none; the message lists those there are.
        """
        for target in self.targets:
            if target.name == name:
                return target
        known = ", ".join(target.name for target in self.targets)
        raise UserError(f"target must be one of {known} for {self.name}, got {name!r}. Pick one of them.")


def object_labels(scene: Scene, index: int) -> dict[str, Label]:
    """What is true of object ``index`` of a scene, and of the scene.

    ``type`` is what a Hewitt-Liang control task gives one random label: the drawing itself (kind and icon family),
    which a probe could learn by heart without any idea of the kind.

    Source: Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks", arXiv 1909.03368.
    """
    thing = scene.objects[index]
    return {
        "kind": thing.kind,
        "category": thing.category,
        "colour": thing.colour,
        "place": thing.place,
        "drawing": thing.family,
        "count": len(scene.objects),
        "control_type": f"{thing.kind}/{thing.family}",
    }


def object_boxes(scene: Scene) -> dict[str, Box]:
    """The box of each object, named ``object0``, ``object1``, ... in reading order."""
    return {f"object{i}": thing.box for i, thing in enumerate(scene.objects)}


def probe_example(scene: Scene, *, seed: int = 0) -> Example:
    """A scene with one of its objects in focus, for reading labels off activations.

    The object is drawn uniformly from the seed and the scene. The question is the same for every scene (the request
    for a caption), so that nothing about the object can be read from its words.
    """
    rng = np.random.default_rng([seed, scene.noise_seed])
    index = int(rng.integers(len(scene.objects)))
    return Example(
        id=scene.id,
        pictures=(scene.picture,),
        question=CAPTION,
        answer=scene.caption,
        group=scene.id,
        split=scene.split,
        labels=object_labels(scene, index),
        boxes=object_boxes(scene),
        focus=f"object{index}",
        family="caption",
    )


def scenes_probe_dataset(*, split: str = "test", n: int, seed: int = 0, size: int = SIZE) -> Dataset:
    """One example for each scene, with the kind, category, colour, place and drawing of one object, and the count.

    Args:
        split: ``"train"``, ``"test"``, ``"unseen"``, or several joined by ``+`` (``"test+unseen"``), which share ``n``
            equally, the first ones getting the remainder.
        n: The number of scenes in all.
        seed: Another seed gives other scenes.
        size: Width and height of the pictures in pixels.

    Raises:
        ValueError: If a split is unknown, ``n`` is below 1, or ``size`` is too small for a scene.
    """
    scenes = _Scenes(split, n, seed, size)
    return Dataset(
        name=f"scenes-{split}",
        examples=LazyExamples(n, lambda i: probe_example(scenes[i], seed=seed)),
        targets=SCENE_TARGETS,
        digest=_digest("probe", scenes),
    )


def scenes_questions_dataset(
    *,
    split: str = "test",
    n: int,
    seed: int = 0,
    size: int = SIZE,
    families: Sequence[Family] = FAMILIES,
    caption: bool = False,
) -> Dataset:
    """Several questions about each of ``n`` scenes, those about one scene next to each other.

    Args:
        split: As for ``scenes_probe_dataset``.
        n: The number of scenes.
        seed: Another seed gives other scenes, and other objects asked about.
        size: Width and height of the pictures in pixels.
        families: The families of question, one question each.
        caption: Whether the request for a caption follows them.

    Raises:
        ValueError: If a split or a family is unknown, no question is left, or ``n`` is below 1.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not (families or caption):
        raise UserError(f"families must be some of {', '.join(FAMILIES)}, got {list(families)}. Pick at least one.")
    scenes = _Scenes(split, n, seed, size)
    per_scene = len(families) + int(caption)

    def make(index: int) -> Example:
        scene, question = scenes[index // per_scene], index % per_scene
        return ask(scene, families[question], seed=seed) if question < len(families) else ask_for_caption(scene)

    return Dataset(
        name=f"scenes-questions-{split}",
        examples=LazyExamples(n * per_scene, make),
        targets=SCENE_TARGETS,
        digest=_digest("questions", scenes, *families, *(["caption"] if caption else [])),
    )


class _Scenes:
    """The scenes of one or several splits by one running index."""

    def __init__(self, split: str, n: int, seed: int, size: int) -> None:
        parts = split.split("+")
        if n < 1:
            raise UserError(f"n must be >= 1, got {n}. Ask for at least one scene.")
        if len(set(parts)) < len(parts):
            raise UserError(f"split must name each split once, got {split!r}. Leave the repetition out.")
        self.split, self.n, self.seed, self.size = split, n, seed, size
        self._parts = [_checked(part) for part in parts]
        self._sizes = [n // len(parts) + (i < n % len(parts)) for i in range(len(parts))]
        self[0]  # refuses a bad size now rather than in the middle of a run

    def __getitem__(self, index: int) -> Scene:
        for part, count in zip(self._parts, self._sizes, strict=True):
            if index < count:
                return make_scene(index, split=part, seed=self.seed, size=self.size)
            index -= count
        raise IndexError(index)


def _checked(split: str) -> Split:
    for known in ("train", "test", "unseen"):
        if split == known:
            return known
    raise UserError(
        f"split must be 'train', 'test', 'unseen' or several joined by '+', got {split!r}. Pick from the three."
    )


def _digest(kind: str, scenes: _Scenes, *more: str) -> str:
    """A hash over the arguments, the tables that scenes draw on, and one rendered picture (fonts and Pillow differ)."""
    first = scenes[0]
    parts = [kind, scenes.split, scenes.n, scenes.seed, scenes.size, *more, NOUNS, COLOURS, first.digest]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(first.picture.open().tobytes())
    return digest.hexdigest()[:16]
