"""Pairs of scenes: they differ in the one attribute and in nothing else, in words, description and pixels."""

from dataclasses import replace
from inspect import unwrap

import numpy as np
import pytest

from tasks.scenes.pairs import ATTRIBUTES, Attribute, make_pair, make_pairs
from tasks.scenes.scene import COLOURS, SceneObject, Split, drawing_families

N = 30


def _focused(pair_objects: tuple[SceneObject, ...], focus: str | None) -> tuple[SceneObject, list[SceneObject]]:
    assert focus is not None
    index = int(focus.removeprefix("object"))
    return pair_objects[index], [thing for i, thing in enumerate(pair_objects) if i != index]


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_descriptions_differ_in_the_attribute_of_one_object_alone(attribute: Attribute) -> None:
    for pair in make_pairs(attribute, n=N):
        clean, others = _focused(pair.clean_scene.objects, pair.clean.focus)
        corrupt, corrupt_others = _focused(pair.corrupt_scene.objects, pair.corrupt.focus)
        assert others == corrupt_others
        field = {"kind": "kind", "colour": "colour", "place": "place", "drawing": "family"}[attribute]
        assert getattr(clean, field) != getattr(corrupt, field)
        back = replace(corrupt, **{field: getattr(clean, field)})
        if attribute == "place":  # the box moves with the place, by whole cells
            moved = np.array(corrupt.box) - np.array(clean.box)
            np.testing.assert_allclose(moved, 56 * np.round(moved / 56), atol=1e-9)
            assert round(float(np.abs(moved).max())) == 56
            back = replace(back, box=clean.box)
        assert back == clean
        a, b = pair.clean_scene, pair.corrupt_scene
        assert (a.background, a.noise_seed, a.size, a.split) == (b.background, b.noise_seed, b.size, b.split)
        assert sorted(a.angles) == sorted(b.angles)
        if attribute != "colour":
            assert sorted(a.tints) == sorted(b.tints)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_pixels_differ_inside_the_boxes_of_the_changed_object_alone(attribute: Attribute) -> None:
    for pair in make_pairs(attribute, n=N):
        pixels = [np.asarray(example.pictures[0].open(), dtype=np.int64) for example in (pair.clean, pair.corrupt)]
        differs = (pixels[0] != pixels[1]).any(axis=2)
        assert differs.sum() > 20, pair.clean.id  # the change is there
        for example in (pair.clean, pair.corrupt):
            box = example.boxes[str(example.focus)]
            # drawings stand on whole pixels, so up to half a pixel beyond their box
            left, top = max(0, int(box.left) - 1), max(0, int(box.top) - 1)
            differs[top : int(box.bottom) + 2, left : int(box.right) + 2] = False
        assert not differs.any(), pair.clean.id


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_both_sides_ask_the_same_question_and_have_their_own_answer(attribute: Attribute) -> None:
    label = {"kind": "kind", "colour": "colour", "place": "place", "drawing": "kind"}[attribute]
    for pair in make_pairs(attribute, n=N):
        assert pair.clean.question == pair.corrupt.question
        assert pair.clean.answer == pair.answer == pair.clean.labels[label]
        assert pair.corrupt.answer == pair.corrupt.labels[label]
        assert pair.foil != pair.answer
        assert pair.corrupt.answer == (pair.answer if attribute == "drawing" else pair.foil)
        if attribute == "drawing":
            assert pair.foil not in [thing.kind for thing in pair.clean_scene.objects]
        assert pair.clean.pictures[0].key != pair.corrupt.pictures[0].key
        assert pair.clean.group == pair.corrupt.group
        assert pair.clean.id != pair.corrupt.id


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_corrupt_scenes_use_the_drawings_of_their_split(split: Split) -> None:
    for pair in make_pairs("kind", n=N, split=split):
        for thing in pair.corrupt_scene.objects:
            assert thing.family in drawing_families(thing.kind, split)


def test_a_changed_colour_keeps_its_deviation() -> None:
    for pair in make_pairs("colour", n=N):
        index = int(str(pair.clean.focus).removeprefix("object"))
        old, new = pair.clean_scene.tints[index], pair.corrupt_scene.tints[index]
        nearest = min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(new, COLOURS[name], strict=True)))
        assert nearest == pair.foil
        for t, o, u, n in zip(old, COLOURS[pair.answer], new, COLOURS[pair.foil], strict=True):
            assert u - n == t - o or u in (0, 255) or t in (0, 255)


def test_pairs_are_reproducible_and_all_different() -> None:
    first, second = make_pairs("kind", n=N), make_pairs("kind", n=N)
    assert first == second
    assert len({pair.clean.id for pair in first}) == N
    assert first != make_pairs("kind", n=N, seed=1)


def test_foils_are_as_long_as_the_answer_where_that_is_possible() -> None:
    free = make_pairs("kind", n=N)
    assert any(len(pair.foil) != len(pair.answer) for pair in free)  # letters stand in for tokens here
    bound = make_pairs("kind", n=N, length=lambda answer: len(answer) > 4)
    assert all((len(pair.foil) > 4) == (len(pair.answer) > 4) for pair in bound)


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="attribute must be one of kind, colour, place, drawing, got 'size'"):
        unwrap(make_pair)(0, "size")  # the type checker would speak first
    with pytest.raises(ValueError, match="index must be >= 0, got -2"):
        make_pair(-2, "kind")
    with pytest.raises(ValueError, match="split must be 'train' or 'test' for attribute 'drawing', got 'unseen'"):
        make_pair(0, "drawing", split="unseen")
