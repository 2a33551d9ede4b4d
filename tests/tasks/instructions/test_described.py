"""Captions and boxes from rows and from COCO's files."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.instructions import read_described

ROW = {
    "id": "7", "image": "7.jpg", "width": 200, "height": 100, "captions": ["A  dog.", "A dog runs."],
    "objects": [{"name": "dog", "box": [20, 10, 120, 90]}],
}  # fmt: skip
TEXT = "A dog.\nA dog runs.\n\ndog: [0.100, 0.100, 0.600, 0.900]"


def rows(path: Path, *given: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in given))
    return path


def coco(folder: Path) -> tuple[Path, Path]:
    """Two pictures in COCO's layout; the second has a crowd and no caption of its own file order."""
    images = [
        {"id": 7, "file_name": "7.jpg", "width": 200, "height": 100},
        {"id": 9, "file_name": "9.jpg", "width": 50, "height": 50},
    ]
    captions = [(9, "A cat."), (7, "A dog."), (7, "A dog runs.")]
    given: dict[str, Any] = {"images": images}
    given["annotations"] = [{"image_id": i, "caption": text, "id": n} for n, (i, text) in enumerate(captions)]
    (folder / "captions.json").write_text(json.dumps(given))
    given["categories"] = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]
    given["annotations"] = [
        {"image_id": 7, "bbox": [20, 10, 100, 80], "category_id": 18, "iscrowd": 0, "segmentation": [[1, 2, 3, 4]]},
        {"image_id": 9, "bbox": [0, 0, 50, 50], "category_id": 17, "iscrowd": 1, "segmentation": {"counts": []}},
    ]
    (folder / "instances.json").write_text(json.dumps(given))
    return folder / "captions.json", folder / "instances.json"


def test_rows_and_cocos_files_give_the_same_text_in_the_layout_of_llavas_prompts(tmp_path: Path) -> None:
    (row,), *_ = read_described(rows(tmp_path / "r.jsonl", ROW))
    (dog, cat), skipped, _ = read_described(*coco(tmp_path))
    assert (row.text(boxes=True), dog.text(boxes=True)) == (TEXT, TEXT)
    assert (dog.id, dog.image, dog.text(boxes=False)) == ("7", "7.jpg", "A dog.\nA dog runs.")
    assert (cat.text(boxes=True), cat.objects, skipped) == ("A cat.", (), ())  # crowds are no single objects
    (dog, _), *_ = read_described(coco(tmp_path)[0])
    assert dog.objects == ()


def test_boxes_are_cut_at_the_edges_and_rows_without_an_id_have_their_number(tmp_path: Path) -> None:
    wide = {**ROW, "objects": [{"name": "dog", "box": [-5, 0, 260, 50]}]}
    del wide["id"]
    (row,), *_ = read_described(rows(tmp_path / "r.jsonl", wide))
    assert (row.id, row.objects[0].box) == ("0", (0.0, 0.0, 1.0, 0.5))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"image": None}, "image must be the path"),
    ({"captions": []}, "captions must be a list of texts"),
    ({"captions": ["a", 3]}, "captions must be a list of texts"),
    ({"captions": "A dog."}, "captions must be a list of texts"),
    ({"objects": {"dog": [1, 2, 3, 4]}}, "objects must be a list"),
    ({"objects": [{"box": [1, 2, 3, 4]}]}, "objects must have a name"),
    ({"objects": [{"name": "dog", "box": [1, 2, 3]}]}, "box must be left, top"),
    ({"objects": [{"name": "dog", "box": [9, 2, 3, 4]}]}, "left < right"),
    ({"objects": [{"name": "dog", "box": [1, 2, 3, None]}]}, "box must be left, top"),
    ({"width": 0}, "width and height must be positive"),
    ({"width": None}, "width and height must be positive"),
    ({"width": 10**400}, "width and height must be positive"),
    ({"objects": [{"name": "dog", "box": [1, 2, 10**400, 4]}]}, "box must be left, top"),
    ({"objects": [{"name": "dog", "box": [0.1, 0.2, 0.5, 0.75]}]}, "box must be in pixels.* Multiply shares"),
    ({"objects": [{"name": "dog", "box": [0, 0, 1, 1]}]}, "box must be in pixels"),
    ({"objects": None, "boxes": {"dog": [1, 2, 30, 40]}}, "objects must be .* got 'boxes'"),
    ({"video": "7.mp4"}, "picture must be under image, got 'video'"),
    ({"image_path": "8.jpg"}, "picture must be under image, got 'image_path'"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_bad_row_is_one_sentence_or_is_left_out(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = rows(tmp_path / "r.jsonl", {**ROW, **change}, {**ROW, "id": "8"})
    with pytest.raises(UserError, match=said):
        read_described(path)
    pictures, skipped, _ = read_described(path, skip_bad=True)
    assert [picture.id for picture in pictures] == ["8"]
    assert len(skipped) == 1 and re.search(said, skipped[0])


def test_an_id_twice_and_no_picture_at_all_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="id must be unique, got '7' again in line 2"):
        read_described(rows(tmp_path / "r.jsonl", ROW, ROW))
    with pytest.raises(UserError, match="at least one picture"):
        read_described(rows(tmp_path / "r.jsonl", {**ROW, "image": ""}), skip_bad=True)


@pytest.mark.parametrize(
    "text",
    ["[", "[]", "{}", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}',
     '{"images": [{"id": 1}], "annotations": [{"image_id": 1}]}',
     '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}, {"caption": "b"}]}',
     '{"images": [{"id": 1}, {}], "annotations": [{"image_id": 1, "caption": "a"}]}'],
)  # fmt: skip
def test_a_json_file_of_another_layout_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(UserError, match="COCO's layout"):
        read_described(tmp_path / "captions.json")


def test_boxes_of_another_layout_and_boxes_beside_rows_are_errors(tmp_path: Path) -> None:
    captions, boxes = coco(tmp_path)
    with pytest.raises(UserError, match="boxes must have COCO's layout .* 'bbox'"):
        read_described(captions, captions)
    boxes.write_text(boxes.read_text().replace("[20, 10, 100, 80]", "[20, 10]"))
    with pytest.raises(UserError, match="COCO's layout"):
        read_described(captions, boxes)
    with pytest.raises(UserError, match="holds its own objects"):
        read_described(rows(tmp_path / "r.jsonl", ROW), boxes)
    with pytest.raises(UserError, match="existing file|readable file"):
        read_described(tmp_path / "gone.json")


def test_keys_that_are_not_read_are_counted(tmp_path: Path) -> None:
    path = rows(tmp_path / "r.jsonl", {**ROW, "source": "a", "note": 1}, {**ROW, "id": "8", "source": "b"})
    assert read_described(path).unread == (("source", 2), ("note", 1))
    assert read_described(*coco(tmp_path)).unread == ()


def shares(boxes: Path) -> None:
    boxes.write_text(boxes.read_text().replace("[20, 10, 100, 80]", "[0.1, 0.1, 0.5, 0.8]"))


def far(boxes: Path) -> None:
    boxes.write_text(boxes.read_text().replace("[20, 10, 100, 80]", f"[20, 10.5, 100, {10**400}]"))


def pipe(boxes: Path) -> None:
    boxes.unlink()
    os.mkfifo(boxes)


@pytest.mark.parametrize(
    ("change", "said"),
    [(shares, "box must be in pixels"), (far, "COCO's layout, got OverflowError"), (pipe, "a named pipe")],
)
def test_boxes_of_coco_that_cannot_be_right_are_one_sentence(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    captions, boxes = coco(tmp_path)
    change(boxes)
    with pytest.raises(UserError, match=said):
        read_described(captions, boxes)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("A cat.", "A cat \\ud83d", "half a surrogate pair"),
        ('"images"', '"annotations": [], "images"', "'annotations' is given twice"),
        ('"width": 200', f'"width": {10**400}', None),
    ],
)
def test_cocos_captions_are_read_as_every_other_json(old: str, new: str, said: str | None, tmp_path: Path) -> None:
    captions, boxes = coco(tmp_path)
    captions.write_text(captions.read_text().replace(old, new))
    with pytest.raises(UserError, match=said or "width and height must be positive"):
        read_described(captions, boxes)


@pytest.mark.parametrize("ending", ["json", "token", "csv", "jsonl"])
def test_a_named_pipe_is_refused_at_once(ending: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"captions.{ending}")
    with pytest.raises(UserError, match="a named pipe|existing file"):
        read_described(tmp_path / f"captions.{ending}")
