"""The embedded data set: one example for each scene, with an object in focus whose labels probes read."""

import hashlib
import json
from typing import get_args

import numpy as np

from tasks.dataset import Dataset, LazyExamples
from tasks.errors import UserError
from tasks.example import Example, Target
from tasks.prompts import CAPTION
from tasks.scenes.drawings import NOUNS
from tasks.scenes.questions import about
from tasks.scenes.scene import COLOURS, MOST_SCENES, SIZE, Scene, Split, make_scene

_OBJECT_TARGETS = tuple(Target(name, scope="object") for name in ("kind", "category", "colour", "place", "drawing"))


def scenes_dataset(*, split: str = "test", n: int, seed: int = 0, size: int = SIZE) -> Dataset:
    """One example for each scene; targets are kind, category, colour, place and drawing of one object, and the count.

    The object in focus is random. Every question is a caption request, so its words do not depend on the object.

    Args:
        split: ``"train"``, ``"test"``, ``"unseen"``, or several joined by ``+`` (``"test+unseen"``), each with an
            equal share of ``n``; the first ones get the remainder.
        n: The total number of scenes.
        seed: Another seed gives other scenes.
        size: Width and height of the pictures in pixels.

    Raises:
        UserError: If a split is unknown or repeated, ``n`` is not in [1, a million], or ``size`` is too
            small for a scene.

    Example:
        >>> data = scenes_dataset(n=3)
        >>> data.examples[0].labels["kind"], [target.name for target in data.targets]
        ('cactus', ['kind', 'category', 'colour', 'place', 'drawing', 'count'])
    """
    names = split.split("+")
    parts = [part for name in names for part in get_args(Split) if part == name]
    if len(parts) < len(names):
        raise UserError(f"split must be 'train', 'test', 'unseen' or several joined by '+', got {split!r}.")
    if len(set(names)) < len(names):
        raise UserError(f"split must name each split once, got {split!r}.")
    if not 1 <= n <= MOST_SCENES:
        raise UserError(f"n must be in [1, {MOST_SCENES:,}] for scenes, got {n:,}. Ask for fewer.")
    places = [(part, i) for k, part in enumerate(parts) for i in range(n // len(parts) + (k < n % len(parts)))]

    def scene(index: int) -> Scene:
        part, number = places[index]
        return make_scene(number, split=part, seed=seed, size=size)

    first = scene(0)  # raises for an invalid size
    described = ["probe", split, n, seed, size, NOUNS, COLOURS, first.digest]
    digest = hashlib.sha256(json.dumps(described).encode())
    digest.update(first.picture.open().tobytes())  # depends on fonts and the version of Pillow
    return Dataset(
        name=f"scenes-{split}",
        examples=LazyExamples(n, lambda i: _with_focus(scene(i), seed)),
        targets=(*_OBJECT_TARGETS, Target("count", scope="image")),
        digest=digest.hexdigest()[:16],
    )


def _with_focus(scene: Scene, seed: int) -> Example:
    """The request for a caption, with a random object in focus."""
    index = int(np.random.default_rng([seed, scene.noise_seed]).integers(len(scene.objects)))
    return about(scene, index, id=scene.id, question=CAPTION, answer=scene.caption, family="caption")
