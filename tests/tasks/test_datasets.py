"""Data sets of scenes: lazy, reproducible, labelled truly; and pictures from files, whole or refused."""

import tracemalloc
from collections import Counter
from inspect import unwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.dataset import Dataset, LazyExamples, join, pick
from tasks.errors import UserError
from tasks.example import Example
from tasks.pictures import open_picture
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.questions import FAMILIES, ask, ask_for_caption
from tasks.scenes.scene import COLOURS, PLACES, make_scene


def test_probe_labels_are_those_of_the_object_in_focus() -> None:
    data = scenes_dataset(split="test", n=50)
    for i, example in enumerate(data.examples):
        scene = make_scene(i, split="test")
        assert example.focus is not None
        thing = scene.objects[int(example.focus.removeprefix("object"))]
        assert example.boxes[example.focus] == thing.box
        assert example.labels == {
            "kind": thing.kind,
            "category": thing.category,
            "colour": thing.colour,
            "place": thing.place,
            "drawing": thing.family,
            "count": len(scene.objects),
            "control_type": f"{thing.kind}/{thing.family}",
        }
        assert example.group == scene.id
        assert len(example.boxes) == len(scene.objects)


def test_every_target_is_a_label_of_every_example() -> None:
    data = scenes_dataset(n=5)
    for example in data.examples:
        assert {target.name for target in data.targets} <= set(example.labels)


def test_the_object_in_focus_is_drawn_uniformly_and_follows_the_seed() -> None:
    four = [e for e in scenes_dataset(n=600).examples if e.labels["count"] == 4]
    counts = Counter(e.focus for e in four)
    # about 150 scenes of four objects: each expected 37 times, standard deviation 5.3, so 4 deviations either way
    assert all(16 < counts[f"object{i}"] < 59 for i in range(4))
    assert {e.labels["place"] for e in four} == set(PLACES)
    focus = [[e.focus for e in scenes_dataset(n=30, seed=seed).examples] for seed in (0, 0, 1)]
    assert focus[0] == focus[1] != focus[2]


def test_probe_questions_say_nothing_about_the_scene() -> None:
    assert len({example.question for example in scenes_dataset(n=30).examples}) == 1


def test_examples_are_made_on_demand_and_not_kept() -> None:
    made: list[int] = []

    def make(index: int) -> Example:
        made.append(index)
        return Example(id=str(index), pictures=(), question="", answer="", group="")

    lazy = LazyExamples(1_000_000_000, make)
    assert len(lazy) == 1_000_000_000 and not made
    assert lazy[-1].id == "999999999"
    assert [e.id for e in lazy[10:20][::3]] == ["10", "13", "16", "19"]
    assert made == [999_999_999, 10, 13, 16, 19]
    with pytest.raises(IndexError):
        lazy[1_000_000_000]


def test_memory_does_not_grow_with_the_number_of_examples() -> None:
    def peak(n: int) -> int:
        data = scenes_dataset(n=n)
        tracemalloc.start()
        for _ in data.examples:
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(20)  # fonts and tables are loaded once
    assert peak(150) < 1.5 * peak(15) + 50_000  # kept examples would take ten times as much


def test_several_splits_share_n_and_keep_their_names() -> None:
    data = scenes_dataset(split="test+unseen", n=7)
    assert [example.split for example in data.examples] == ["test"] * 4 + ["unseen"] * 3
    assert [e.id for e in data.examples][:4] == [e.id for e in scenes_dataset(split="test", n=4).examples]
    assert len({example.group for example in data.examples}) == 7


def test_questions_about_one_scene_share_its_picture_and_group_and_have_the_same_labels_as_the_data_set() -> None:
    scene = make_scene(3, split="test")
    asked = [*(ask(scene, family) for family in FAMILIES), ask_for_caption(scene)]
    assert [e.family for e in asked] == [*FAMILIES, "caption"]
    assert len({e.group for e in asked}) == len({e.pictures[0].key for e in asked}) == 1
    assert len({e.id for e in asked}) == len(asked)
    assert {tuple(e.labels) for e in asked} == {tuple(scenes_dataset(n=4).examples[3].labels)}


def test_picked_and_joined_examples_are_made_on_demand() -> None:
    both = join(scenes_dataset(n=2).examples, scenes_dataset(n=3, seed=1).examples)
    assert [e.id for e in both] == ["test-0-0", "test-0-1", "test-1-0", "test-1-1", "test-1-2"]
    assert [e.id for e in both[1:4]] == [both[i].id for i in (1, 2, 3)]
    picked = pick(both, [4, 0])
    assert (len(picked), picked[0].id, picked[-1].id) == (2, "test-1-2", "test-0-0")
    with pytest.raises(IndexError):
        picked[2]


def test_the_digest_names_everything_that_defines_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    base = scenes_dataset(n=10).digest
    assert base == scenes_dataset(n=10).digest
    others = [
        scenes_dataset(n=11),
        scenes_dataset(n=10, seed=1),
        scenes_dataset(n=10, split="train"),
        scenes_dataset(n=10, size=56),
    ]
    digests = {base, *(data.digest for data in others)}
    assert len(digests) == 5
    monkeypatch.setitem(COLOURS, "red", (255, 0, 0))
    assert scenes_dataset(n=10).digest not in digests


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n must be in \[1, 1,000,000\]"):
        scenes_dataset(n=0)
    with pytest.raises(ValueError, match="split must be .* got 'dev'"):
        scenes_dataset(n=1, split="dev")
    with pytest.raises(ValueError, match="split must name each split once"):
        scenes_dataset(n=1, split="test+test")
    with pytest.raises(ValueError, match="size must be >= 28 pixels"):
        scenes_dataset(n=1, size=4)
    with pytest.raises(ValueError, match="family must be one of what, .* got 'who'"):
        unwrap(ask)(make_scene(0), "who")  # the type checker would raise first
    with pytest.raises(ValueError, match="target must be one of kind, category, .* got 'mood'"):
        scenes_dataset(n=1).target("mood")


def test_target_finds_a_target_by_name() -> None:
    data: Dataset = scenes_dataset(n=1)
    assert data.target("count").scope == "image"
    assert data.target("kind").scope == "object"


def test_open_picture_gives_the_pixels_in_rgb(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png")), pixels)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    grey = open_picture(tmp_path / "grey.png")
    assert grey.mode == "RGB" and np.array_equal(np.asarray(grey)[..., 2], pixels[..., 0])


def test_open_picture_scales_sixteen_bits_instead_of_clipping_them(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(open_picture(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 128, 255]


def test_open_picture_turns_the_picture_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # the EXIF orientation tag: turn by 90 degrees clockwise to view
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (4, 8)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_picture_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    Image.fromarray(pixels).save(whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert open_picture(whole).size == (64, 64)
    with pytest.raises(UserError, match=f"picture must be a readable image file, got .*cut{suffix}"):
        open_picture(cut)


def test_a_missing_file_a_folder_and_a_text_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="picture must exist, got .*nowhere.png"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="picture must be a regular file, got a folder"):
        open_picture(tmp_path)
    (tmp_path / "words.png").write_text("not a picture")
    with pytest.raises(UserError, match=r"picture must be a readable image file \(PNG, .*\), got .*words.png"):
        open_picture(tmp_path / "words.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"picture must be a readable image file \(PNG, .*\), got .*empty.png"):
        open_picture(tmp_path / "empty.png")


@pytest.mark.parametrize("side", [11, 20])  # Pillow warns above the limit of 100 pixels and raises above twice that
def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    Image.new("RGB", (side, side)).save(tmp_path / "bomb.png")
    assert open_picture(tmp_path / "bomb.png").size == (side, side)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="picture must have at most 100 pixels, got more in .*bomb.png"):
        open_picture(tmp_path / "bomb.png")


def test_a_picture_of_floats_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((3, 3), dtype=np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UserError, match="picture must have 8 or 16 bits a channel, got pixel type 'F'"):
        open_picture(tmp_path / "float.tiff")
