"""Pairs of scenes that differ in one attribute of one object: the clean and the corrupt input of an intervention.

The two examples have the same question. Outside the boxes every pixel is equal, also its noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from tasks.errors import UserError
from tasks.example import Box, Example
from tasks.scenes.drawings import KINDS
from tasks.scenes.questions import Family, ask
from tasks.scenes.scene import (
    COLOURS,
    MOST_SCENES,
    PLACES,
    SIZE,
    Scene,
    SceneObject,
    Split,
    drawing_families,
    make_scene,
)  # fmt: skip

Attribute = Literal["kind", "colour", "place", "drawing"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
_FAMILY: dict[Attribute, Family] = {"kind": "what", "colour": "colour", "place": "where", "drawing": "what"}
_TRIES = 16  # scenes per pair: one in four has no free place, so all sixteen fail once in 4e9 pairs


@dataclass(frozen=True)
class ScenePair:
    """A clean and a corrupt example with the same question.

    Args:
        clean: The clean example.
        corrupt: The corrupt example.
        attribute: The attribute of the object in focus that differs.
        answer: The right answer to the clean example.
        foil: The right answer to the corrupt example; for ``"drawing"``, where both answers are equal, another noun.
        clean_scene: The scene of ``clean``.
        corrupt_scene: The scene of ``corrupt``.

    Example:
        >>> pair = make_pair(0, "kind")
        >>> pair.clean_scene.objects[0].kind, pair.corrupt_scene.objects[0].kind
        ('cactus', 'cactus')
    """

    clean: Example
    corrupt: Example
    attribute: Attribute
    answer: str
    foil: str
    clean_scene: Scene
    corrupt_scene: Scene


def make_pair(
    index: int,
    attribute: Attribute,
    *,
    split: Split = "test",
    seed: int = 0,
    size: int = SIZE,
    length: Callable[[str], int] | None = None,
) -> ScenePair:
    """Pair number ``index``.

    Args:
        index: From 0; other indices use other scenes.
        attribute: The attribute that differs.
        split: The split of scene and drawings.
        seed: Another seed gives other pairs.
        size: Width and height of the pictures in pixels.
        length: Counts the tokens of an answer; foils then have as many tokens as the answer if possible.

    Raises:
        UserError: If the attribute or split is unknown, ``index`` is negative, or ``"drawing"`` is combined with
            ``"unseen"`` (each noun has one unseen drawing).

    Example:
        >>> pair = make_pair(0, "colour")
        >>> pair.clean.question == pair.corrupt.question, pair.answer, pair.foil
        (True, 'green', 'blue')
    """
    if attribute not in ATTRIBUTES:
        raise UserError(f"attribute must be one of {', '.join(ATTRIBUTES)}, got {attribute!r}.")
    if index < 0:
        raise UserError(f"index must be >= 0, got {index}.")
    if attribute == "drawing" and split == "unseen":
        raise UserError(
            "split must be 'train' or 'test' for attribute 'drawing', got 'unseen'. Each noun has one unseen drawing."
        )
    for trial in range(_TRIES * index, _TRIES * (index + 1)):
        pair = _try_pair(trial, attribute, split, seed, size, length)
        if pair is not None:
            return pair
    raise UserError(f"index must allow a pair, got {index}, whose {_TRIES} scenes allow none. Use another seed.")


def make_pairs(
    attribute: Attribute,
    *,
    n: int,
    split: Split = "test",
    seed: int = 0,
    size: int = SIZE,
    length: Callable[[str], int] | None = None,
) -> list[ScenePair]:
    """The first ``n`` pairs of an attribute, at most a million; see ``make_pair``.

    Example:
        >>> [pair.attribute for pair in make_pairs("kind", n=2)]
        ['kind', 'kind']
    """
    if n > MOST_SCENES:
        raise UserError(f"n must be at most {MOST_SCENES:,} pairs of scenes, got {n:,}. Ask for fewer.")
    return [make_pair(i, attribute, split=split, seed=seed, size=size, length=length) for i in range(n)]


def _try_pair(
    index: int, attribute: Attribute, split: Split, seed: int, size: int, length: Callable[[str], int] | None
) -> ScenePair | None:
    """A pair from scene ``index``, or None if its object in focus has no other value of the attribute."""
    scene = make_scene(index, split=split, seed=seed, size=size)
    rng = np.random.default_rng([seed, ATTRIBUTES.index(attribute), scene.noise_seed])
    clean = ask(scene, _FAMILY[attribute], seed=seed)
    focus = list(scene.boxes).index(str(clean.focus))
    variants = _variants(scene, focus, attribute, split)
    if not variants:
        return None

    def pick(values: Sequence[str], *, as_long: bool = True) -> str:
        """A random value, of as many tokens as the answer if there is one."""
        if as_long and length is not None:
            values = [value for value in values if length(value) == length(clean.answer)] or values
        return values[int(rng.integers(len(values)))]

    if attribute == "drawing":
        kinds = [thing.kind for thing in scene.objects]
        foil = pick([kind for kind in KINDS if kind not in kinds])
        value = pick(list(variants), as_long=False)
    else:
        value = foil = pick(list(variants))
    corrupt_scene = _changed(scene, focus, attribute, variants[value])
    now = corrupt_scene.objects.index(variants[value])
    name = f"{scene.id}/{attribute}"
    corrupt = replace(
        clean,
        id=f"{name}/corrupt",
        pictures=(corrupt_scene.picture,),
        answer=clean.answer if attribute == "drawing" else foil,
        labels=corrupt_scene.labels(now),
        boxes=corrupt_scene.boxes,
        focus=f"object{now}",
    )
    return ScenePair(replace(clean, id=f"{name}/clean"), corrupt, attribute, clean.answer, foil, scene, corrupt_scene)


def _variants(scene: Scene, focus: int, attribute: Attribute, split: Split) -> dict[str, SceneObject]:
    """The object in focus with each other value of the attribute that this scene allows."""
    thing = scene.objects[focus]
    match attribute:
        case "kind":
            present = [o.kind for o in scene.objects]
            kinds = [k for k in KINDS if k not in present and thing.family in drawing_families(k, split)]
            return {kind: replace(thing, kind=kind) for kind in kinds}
        case "colour":
            return {colour: replace(thing, colour=colour) for colour in COLOURS if colour != thing.colour}
        case "place":
            taken = [o.place for o in scene.objects]
            return {place: _moved(thing, place, scene.size / 2) for place in PLACES if place not in taken}
        case "drawing":
            families = [family for family in drawing_families(thing.kind, split) if family != thing.family]
            return {family: replace(thing, family=family) for family in families}


def _changed(scene: Scene, focus: int, attribute: Attribute, thing: SceneObject) -> Scene:
    """The scene with ``thing`` as its object in focus, in reading order; its tint varies as before."""
    old, new = COLOURS[scene.objects[focus].colour], COLOURS[thing.colour]
    red, green, blue = (min(255, max(0, t + n - o)) for t, n, o in zip(scene.tints[focus], new, old, strict=True))
    parts = list(zip(scene.objects, scene.angles, scene.tints, strict=True))
    parts[focus] = (thing, scene.angles[focus], (red, green, blue))
    parts.sort(key=lambda part: PLACES.index(part[0].place))
    objects, angles, tints = (tuple(column) for column in zip(*parts, strict=True))
    return replace(scene, id=f"{scene.id}/{attribute}", objects=objects, angles=angles, tints=tints)


def _moved(thing: SceneObject, place: str, half: float) -> SceneObject:
    """The object in another cell, at the same offset from the cell's corner."""
    old, new = PLACES.index(thing.place), PLACES.index(place)
    shift = (new % 2 - old % 2) * half, (new // 2 - old // 2) * half
    # Rounded as in ``make_scene``, because a float error could change the width of the drawing.
    left, top, right, bottom = (round(side + by, 2) for side, by in zip(thing.box, shift * 2, strict=True))
    return replace(thing, place=place, box=Box(left, top, right, bottom))
