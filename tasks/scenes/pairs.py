"""Pairs of scenes that differ in exactly one attribute: the clean and the corrupt input of an intervention.

``make_pair(index, "colour")`` gives two examples with the same question. Apart from the attribute the two scenes are
equal, including the noise of every pixel outside the boxes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from tasks.errors import UserError
from tasks.example import Box, Example
from tasks.scenes.drawings import KINDS
from tasks.scenes.questions import Family, ask
from tasks.scenes.scene import COLOURS, PLACES, SIZE, Scene, SceneObject, Split, drawing_families, make_scene

Attribute = Literal["kind", "colour", "place", "drawing"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
_FAMILY: dict[Attribute, Family] = {"kind": "what", "colour": "colour", "place": "where", "drawing": "what"}
_TRIES = 16  # scenes per pair: at worst (place) one in four is full, and all sixteen are full once in 4e9 pairs


@dataclass(frozen=True)
class ScenePair:
    """A clean and a corrupt example with the same question.

    Args:
        clean: The example whose answer is ``answer``.
        corrupt: The example that differs in ``attribute`` only.
        attribute: What differs in the object in focus.
        answer: The right answer to the clean example.
        foil: The right answer to the corrupt example; for ``"drawing"``, where both answers are equal, another noun.
        clean_scene: The scene of ``clean``.
        corrupt_scene: The scene of ``corrupt``.
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
        index: Any integer from 0; other indices use other scenes.
        attribute: What differs.
        split: The split of scene and drawings.
        seed: Another seed gives other pairs.
        size: Width and height of the pictures in pixels.
        length: Counts the tokens of an answer. Foils then have as many tokens as the answer if possible.

    Raises:
        UserError: If the attribute or split is unknown, ``index`` is negative, or the split has no second value of the
            attribute (each noun has one unseen drawing).

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
    for trial in range(_TRIES):
        pair = _try_pair(_TRIES * index + trial, attribute, split, seed, size, length)
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
    """The first ``n`` pairs of an attribute; arguments as for ``make_pair``.

    Example:
        >>> [pair.attribute for pair in make_pairs("kind", n=2)]
        ['kind', 'kind']
    """
    return [make_pair(i, attribute, split=split, seed=seed, size=size, length=length) for i in range(n)]


def _try_pair(
    index: int, attribute: Attribute, split: Split, seed: int, size: int, length: Callable[[str], int] | None
) -> ScenePair | None:
    """A pair from scene ``index``, or None if its object in focus has no other value of the attribute."""
    scene = make_scene(index, split=split, seed=seed, size=size)
    rng = np.random.default_rng([seed, ATTRIBUTES.index(attribute), scene.noise_seed])
    clean = ask(scene, _FAMILY[attribute], seed=seed)
    focus = list(scene.boxes).index(str(clean.focus))
    values = _other_values(scene, focus, attribute, split)
    if not values:
        return None
    if attribute == "drawing":
        kinds = [thing.kind for thing in scene.objects]
        foil = _pick(rng, _as_long([k for k in KINDS if k not in kinds], clean.answer, length))
        value = _pick(rng, values)
    else:
        value = foil = _pick(rng, _as_long(values, clean.answer, length))
    corrupt_scene, now = _changed(scene, focus, attribute, value)
    name = f"{scene.id}/{attribute}"
    return ScenePair(
        clean=replace(clean, id=f"{name}/clean"),
        corrupt=replace(
            clean,
            id=f"{name}/corrupt",
            pictures=(corrupt_scene.picture,),
            answer=clean.answer if attribute == "drawing" else foil,
            labels=corrupt_scene.labels(now),
            boxes=corrupt_scene.boxes,
            focus=f"object{now}",
        ),
        attribute=attribute,
        answer=clean.answer,
        foil=foil,
        clean_scene=scene,
        corrupt_scene=corrupt_scene,
    )


def _other_values(scene: Scene, focus: int, attribute: Attribute, split: Split) -> list[str]:
    """The other values that the attribute of the object in focus can have in this scene."""
    thing = scene.objects[focus]
    match attribute:
        case "kind":
            present = [o.kind for o in scene.objects]
            return [k for k in KINDS if k not in present and thing.family in drawing_families(k, split)]
        case "colour":
            return [colour for colour in COLOURS if colour != thing.colour]
        case "place":
            taken = [o.place for o in scene.objects]
            return [place for place in PLACES if place not in taken]
        case "drawing":
            return [family for family in drawing_families(thing.kind, split) if family != thing.family]


def _changed(scene: Scene, focus: int, attribute: Attribute, value: str) -> tuple[Scene, int]:
    """The scene with one value changed, and the new index of the object in focus."""
    thing, tint = scene.objects[focus], scene.tints[focus]
    match attribute:
        case "kind":
            thing = replace(thing, kind=value)
        case "drawing":
            thing = replace(thing, family=value)
        case "colour":
            tint = _retint(tint, thing.colour, value)
            thing = replace(thing, colour=value)
        case "place":
            thing = _moved(thing, value, scene.size / 2)
    parts = list(zip(scene.objects, scene.angles, scene.tints, strict=True))
    parts[focus] = (thing, scene.angles[focus], tint)
    parts.sort(key=lambda part: PLACES.index(part[0].place))
    objects, angles, tints = (tuple(column) for column in zip(*parts, strict=True))
    changed = replace(scene, id=f"{scene.id}/{attribute}", objects=objects, angles=angles, tints=tints)
    return changed, objects.index(thing)


def _retint(tint: tuple[int, int, int], old: str, new: str) -> tuple[int, int, int]:
    """``tint`` with its deviation from the colour kept, clipped to 8 bits."""
    red, green, blue = (min(255, max(0, t + n - o)) for t, n, o in zip(tint, COLOURS[new], COLOURS[old], strict=True))
    return red, green, blue


def _moved(thing: SceneObject, place: str, half: float) -> SceneObject:
    """The object in another cell, at the same offset from the cell's corner."""
    old, new = PLACES.index(thing.place), PLACES.index(place)
    shift = (new % 2 - old % 2) * half, (new // 2 - old // 2) * half
    # rounded as scenes are, because float error could change the rounded width of the drawing
    left, top, right, bottom = (round(side + by, 2) for side, by in zip(thing.box, shift * 2, strict=True))
    return replace(thing, place=place, box=Box(left, top, right, bottom))


def _as_long(values: Sequence[str], answer: str, length: Callable[[str], int] | None) -> Sequence[str]:
    """The values with as many tokens as the answer; all values if there is none."""
    if length is None:
        return values
    return [value for value in values if length(value) == length(answer)] or values


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]
