"""Scenes: reproducible, disjoint between splits, with boxes and captions that are true of the pixels."""

from dataclasses import replace
from inspect import unwrap

import numpy as np
import pytest

from tasks.scenes.drawings import CATEGORIES, DRAWINGS, KINDS, NOUNS
from tasks.scenes.scene import COLOURS, PLACES, Scene, Split, drawing_families, make_scene, render

SPLITS: tuple[Split, ...] = ("train", "test", "unseen")


def _pixels(scene: Scene) -> np.ndarray:
    return np.asarray(render(scene), dtype=np.int64)


def test_the_same_index_gives_the_same_description_and_the_same_pixels() -> None:
    first, second = make_scene(7, split="test", seed=3), make_scene(7, split="test", seed=3)
    assert first == second
    assert np.array_equal(_pixels(first), _pixels(second))


def test_another_index_seed_or_split_gives_another_picture() -> None:
    base = make_scene(7, split="test", seed=3)
    others = [make_scene(8, split="test", seed=3), make_scene(7, split="test", seed=4), make_scene(7, seed=3)]
    assert len({base.digest, *(other.digest for other in others)}) == 4
    assert all(not np.array_equal(_pixels(base), _pixels(other)) for other in others)


def test_train_test_and_unseen_share_no_picture() -> None:
    digests = {split: {make_scene(i, split=split).digest for i in range(200)} for split in SPLITS}
    assert all(len(found) == 200 for found in digests.values())  # no repetition within a split either
    assert not digests["train"] & digests["test"]
    assert not (digests["train"] | digests["test"]) & digests["unseen"]


def test_unseen_drawings_never_occur_in_train_or_test() -> None:
    drawn = {
        split: {(thing.kind, thing.family) for i in range(200) for thing in make_scene(i, split=split).objects}
        for split in SPLITS
    }
    assert not drawn["unseen"] & (drawn["train"] | drawn["test"])
    assert {kind for kind, _ in drawn["unseen"]} == set(KINDS) == {kind for kind, _ in drawn["train"]}


def test_every_kind_has_a_seen_and_a_held_out_drawing() -> None:
    assert len(KINDS) >= 40
    assert len(CATEGORIES) == 6
    for kind in KINDS:
        assert len(drawing_families(kind, "train")) >= 1
        assert len(drawing_families(kind, "unseen")) == 1
        assert set(drawing_families(kind, "train")) | set(drawing_families(kind, "unseen")) == set(DRAWINGS[kind])


def test_boxes_contain_all_ink() -> None:
    for i in range(40):
        scene = make_scene(i, split="test")
        blank = replace(scene, objects=(), angles=(), tints=())  # the same background and the same noise
        ink = (_pixels(scene) != _pixels(blank)).any(axis=2)
        outside = ink.copy()
        for thing in scene.objects:
            left, top = int(np.floor(thing.box.left)), int(np.floor(thing.box.top))
            right, bottom = int(np.ceil(thing.box.right)), int(np.ceil(thing.box.bottom))
            # rounding to whole pixels may move a drawing by half a pixel beyond its box
            inside = ink[top : bottom + 1, left : right + 1]
            assert inside.mean() > 0.1, f"{scene.id}: no ink in the box of {thing.kind}"
            outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert not outside.any(), f"{scene.id}: ink outside the boxes"


def test_every_object_stands_in_the_cell_that_its_place_names() -> None:
    for i in range(100):
        for thing in make_scene(i, split="train").objects:
            x, y = (thing.box.left + thing.box.right) / 2, (thing.box.top + thing.box.bottom) / 2
            assert PLACES.index(thing.place) == 2 * int(y > 56) + int(x > 56)


def test_ink_has_the_colour_that_the_label_names() -> None:
    scenes = (make_scene(i, split="test", n_objects=1) for i in range(500))
    scene = next(scene for scene in scenes if scene.objects[0].kind == "egg")  # a drawing with ink in its middle
    thing = scene.objects[0]
    x, y = int((thing.box.left + thing.box.right) / 2), int((thing.box.top + thing.box.bottom) / 2)
    middle = _pixels(scene)[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0)
    nearest = min(COLOURS, key=lambda name: float(np.abs(middle - np.array(COLOURS[name])).sum()))
    assert nearest == thing.colour


def test_the_caption_names_every_object_its_colour_and_its_place() -> None:
    for i in range(60):
        scene = make_scene(i, split="test")
        assert scene.caption[0].isupper() and scene.caption.endswith(".")
        for thing in scene.objects:
            article = "an" if thing.colour[0] in "aeiou" else "a"
            assert f"{article} {thing.colour} {thing.kind} at the {thing.place}" in scene.caption.lower()
        assert scene.caption.count(" at the ") == len(scene.objects)


def test_categories_group_the_kinds() -> None:
    for thing in make_scene(2, n_objects=4).objects:
        assert thing.kind in NOUNS[thing.category]


def test_size_scales_the_picture_and_the_boxes() -> None:
    small, large = make_scene(5, size=112), make_scene(5, size=336)
    assert render(large).size == (336, 336)
    for a, b in zip(small.objects, large.objects, strict=True):
        assert (a.kind, a.colour, a.place) == (b.kind, b.colour, b.place)
        np.testing.assert_allclose(np.array(b.box), 3 * np.array(a.box), atol=0.05)  # boxes are rounded to 0.01


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split must be 'train', 'test' or 'unseen', got 'validation'"):
        unwrap(make_scene)(0, split="validation")  # the type checker would speak first
    with pytest.raises(ValueError, match="index must be >= 0, got -1"):
        make_scene(-1)
    with pytest.raises(ValueError, match="size must be >= 28 pixels, got 20"):
        make_scene(0, size=20)
    with pytest.raises(ValueError, match=r"n_objects must be in \[1, 4\], got 5"):
        make_scene(0, n_objects=5)
