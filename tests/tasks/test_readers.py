"""Reading the user's own tables: what is right comes through unchanged, what is wrong is refused by row."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.example import Box, Target
from tasks.readers.load_dataset import check_pictures, load_dataset, read_table
from tasks.readers.tables import open_table

Write = Callable[[Sequence[Mapping[str, Any]]], Path]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three pictures, the last a copy of the first."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, seed in (("a.png", 0), ("b.png", 1), ("copy of a.png", 0)):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def row(image: str = "a.png", **more: Any) -> dict[str, Any]:
    return {"image": image, "question": "What is it?", "answer": "cat", **more}


@pytest.fixture
def read(tmp_path: Path, photos: Path) -> Callable[..., Dataset]:
    """Reads rows that were written as JSONL."""

    def run(*rows: Mapping[str, Any], **options: Any) -> Dataset:
        return read_table(write_jsonl(tmp_path / "data.jsonl", rows), photos, **options)

    return run


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_becomes_an_example(kind: str, tmp_path: Path, photos: Path) -> None:
    rows = [
        row(
            id="x", colour="red", size=1.5, boxes={"thing": [1, 2, 10, 12]}, focus="thing", split="test", family="what"
        ),
        row("b.png", id="y", colour="blue", size=2.0, boxes={"other": [0, 0, 30, 20]}, focus="other", split="test"),
    ]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write_jsonl(path, rows)
    else:
        pd.DataFrame(rows).to_parquet(path)
    data = read_table(path, photos)
    first, second = data.examples
    assert (first.id, first.question, first.answer, first.family) == ("x", "What is it?", "cat", "what")
    assert first.labels == {"colour": "red", "size": 1.5, "answer": "cat"}
    assert (first.boxes, first.focus) == ({"thing": Box(1, 2, 10, 12)}, "thing")
    assert second.boxes == {"other": Box(0, 0, 30, 20)}
    assert second.pictures[0].open().size == (30, 20)
    assert first.group != second.group
    assert data.targets == (Target("colour", "object"), Target("size", "object"))


def test_parquet_rows_are_found_across_row_groups(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "data.parquet"
    pd.DataFrame([row(number=i) for i in range(10)]).to_parquet(path, row_group_size=3)
    examples = read_table(path, photos).examples
    assert [examples[i].labels["number"] for i in (9, 0, 3, 2, 8)] == [9, 0, 3, 2, 8]


def test_jsonl_rows_are_found_past_blank_lines_and_other_alphabets(tmp_path: Path, photos: Path) -> None:
    lines = [json.dumps(row(name=name), ensure_ascii=False) for name in ("Katze", "кошка", "猫")]
    path = tmp_path / "data.jsonl"
    path.write_text("﻿" + "\n\n".join(lines) + "\n\n", encoding="utf-8")
    examples = read_table(path, photos).examples
    assert [examples[i].labels["name"] for i in (2, 1, 0)] == ["猫", "кошка", "Katze"]


def test_no_picture_is_opened_while_the_table_is_read(
    read: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: (opened.append(path), original(path, *a, **k))[1])
    examples = read(row(), row("b.png")).examples
    assert examples[1].pictures and not opened
    examples[1].pictures[0].open()
    assert opened


def test_several_pictures_or_none_are_possible(read: Callable[..., Dataset]) -> None:
    text = {"question": "What is it?", "answer": "cat"}
    both, none = read({**text, "images": ["a.png", "b.png"]}, text).examples
    assert [picture.key for picture in both.pictures] == ["a.png", "b.png"]
    assert none.pictures == ()


def test_a_photo_under_two_names_is_one_group_and_one_picture(read: Callable[..., Dataset]) -> None:
    first, other, copy = read(row("a.png"), row("b.png"), row("copy of a.png")).examples
    assert first.group == copy.group != other.group
    assert first.pictures[0].key == copy.pictures[0].key != other.pictures[0].key


def test_a_shared_picture_joins_given_groups(read: Callable[..., Dataset]) -> None:
    rows = [row("a.png", group="left"), row("copy of a.png", group="right"), row("b.png", group="right"), row("b.png")]
    assert len({example.group for example in read(*rows).examples}) == 1
    apart = read(row("a.png", group="left"), row("b.png", group="right")).examples
    assert apart[0].group != apart[1].group


def test_groups_do_not_depend_on_which_split_is_read(read: Callable[..., Dataset]) -> None:
    rows = [row("a.png", split="train"), row("copy of a.png", split="test")]
    train, test = (read(*rows, split=split).examples[0] for split in ("train", "test"))
    assert train.group == test.group


def test_split_and_limit_choose_rows(read: Callable[..., Dataset]) -> None:
    rows = [row(id=str(i), split="test" if i % 2 else "train") for i in range(6)]
    assert [example.id for example in read(*rows, split="test").examples] == ["1", "3", "5"]
    assert [example.id for example in read(*rows, split="test", limit=2).examples] == ["1", "3"]
    with pytest.raises(UserError, match="split must be one of test, train, got 'dev'"):
        read(*rows, split="dev")
    with pytest.raises(UserError, match="limit must be >= 1, got 0"):
        read(*rows, limit=0)


def test_columns_can_be_named(read: Callable[..., Dataset]) -> None:
    data = read({"file": "b.png", "q": "Who?", "a": "me"}, image_column="file", question_column="q", answer_column="a")
    assert (data.examples[0].pictures[0].key, data.examples[0].question, data.examples[0].answer) == (
        "b.png",
        "Who?",
        "me",
    )
    assert data.targets == ()
    with pytest.raises(UserError, match="image_column must be a column, got 'photo' in line 1 .* has: image, question"):
        read(row(), image_column="photo")


@pytest.mark.parametrize("column", ["question", "answer"])
def test_a_missing_column_lists_those_there_are(column: str, read: Callable[..., Dataset]) -> None:
    broken = {key: value for key, value in row(colour="red").items() if key != column}
    with pytest.raises(UserError, match=f"{column}_column must be a column, got '{column}' in line 2 .*image.*colour"):
        read(row(), broken)


def test_label_kinds_follow_from_the_values(read: Callable[..., Dataset]) -> None:
    rows = [row(age=i + 0.5 if i else 0, few=float(i % 3), number=i, name=str(i), flag=i % 2 == 0) for i in range(25)]
    data = read(*rows)
    kinds = {target.name: target.kind for target in data.targets}
    assert kinds == {"age": "continuous", "few": "class", "number": "class", "name": "class", "flag": "class"}
    assert isinstance(data.examples[0].labels["age"], float)  # written as the integer 0
    assert {target.scope for target in data.targets} == {"image"}


def test_targets_override_what_is_inferred(read: Callable[..., Dataset]) -> None:
    rows = [row(number=i, colour="red") for i in range(3)]
    assert read(*rows, targets=["number:continuous", "colour:object", "answer"]).targets == (
        Target("number", "image", "continuous"),
        Target("colour", "object", "class"),
        Target("answer", "image", "class"),
    )
    with pytest.raises(UserError, match="target 'colour' must hold numbers to be continuous"):
        read(*rows, targets=["colour:continuous"])
    with pytest.raises(UserError, match="target must end in :class, :continuous, :image or :object, got 'number:real'"):
        read(*rows, targets=["number:real"])
    with pytest.raises(UserError, match="target must be a label column, got 'mood'. The file has: number, colour"):
        read(*rows, targets=["mood"])


@pytest.mark.parametrize("hole", [{"age": None}, {"age": float("nan")}, {}])
def test_a_label_with_a_hole_is_refused_as_a_target(hole: dict[str, Any], read: Callable[..., Dataset]) -> None:
    rows = [row(age=1.0), row(**hole)]
    assert "age" not in read(*rows).examples[1].labels
    with pytest.raises(UserError, match="target 'age' must have a label in every row, got none in line 2"):
        read(*rows, targets=["age"])


def test_a_label_that_starts_late_has_its_hole_in_the_first_row(read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match="got none in line 1"):
        read(row(), row(age=1), targets=["age"])


def test_labels_of_mixed_types_are_no_target(read: Callable[..., Dataset]) -> None:
    rows = [row(mixed=1, nested=[1]), row(mixed="one", nested=[2])]
    assert read(*rows).targets == ()
    with pytest.raises(UserError, match=r"got 'mixed' \(its values are missing, nested, of mixed types"):
        read(*rows, targets=["mixed"])


def test_an_infinite_label_is_refused(read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match="label must be finite, got age: inf in line 1"):
        read(row(age=float("inf")))


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/hostname", "sub/../../outside.png", "link.png", "linked/x.png"]
)
def test_a_path_out_of_the_folder_is_refused(name: str, read: Callable[..., Dataset], photos: Path) -> None:
    outside = photos.parent / "outside.png"
    Image.new("RGB", (4, 4)).save(outside)
    os.symlink(outside, photos / "link.png")
    os.symlink(photos.parent, photos / "linked")
    with pytest.raises(UserError, match="image must stay inside the image folder, got .* in line 1"):
        read(row(name))


def test_a_link_within_the_folder_is_followed(read: Callable[..., Dataset], photos: Path) -> None:
    os.symlink(photos / "a.png", photos / "link.png")
    first, linked = read(row("a.png"), row("link.png")).examples
    assert linked.pictures[0].open().size == (30, 20)
    assert linked.group == first.group


@pytest.mark.parametrize("image", [3, "a\0b", ["a.png", 3], ["a.png", ""], True])
def test_an_image_that_is_no_path_is_refused(image: Any, read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match="image must be a path"):
        read(row(image))


def test_image_and_images_together_are_refused(read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match="row must have image or images, got both in line 1"):
        read(row(images=["b.png"]))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([1, 2], "boxes must map names"),
        ("all", "boxes must map names"),
        ({"x": [0, 0, 5]}, "box must be .left, top, right, bottom."),
        ({"x": ["0", 0, 5, 5]}, "box must be .left, top, right, bottom."),
        ({"x": [0, 0, float("nan"), 5]}, "box must be .left, top, right, bottom."),
        ({"x": [5, 0, 5, 5]}, "box must have left < right"),
        ({"x": [0, 0, 31, 5]}, r"box must lie inside its picture \(30 x 20\)"),
        ({"x": [-1, 0, 5, 5]}, r"box must lie inside its picture \(30 x 20\)"),
    ],
)
def test_a_box_that_is_none_is_refused(boxes: Any, message: str, read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match=message):
        read(row(boxes=boxes))


def test_a_focus_without_its_box_is_refused(read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match=r"focus must be one of the boxes \(cat\), got 'dog' in line 1"):
        read(row(boxes={"cat": [0, 0, 5, 5]}, focus="dog"))


def test_boxes_are_measured_on_the_upright_picture(read: Callable[..., Dataset], photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: 30 x 20 on disk is 20 x 30 when shown
    Image.new("RGB", (30, 20)).save(photos / "turned.jpg", exif=exif)
    assert read(row("turned.jpg", boxes={"low": [0, 20, 20, 30]})).examples[0].pictures[0].open().size == (20, 30)
    with pytest.raises(UserError, match=r"inside its picture \(20 x 30\)"):
        read(row("turned.jpg", boxes={"wide": [0, 0, 30, 20]}))


def test_bad_json_is_refused_with_its_line(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row()) + "\n\n{'image': 'a.png'}\n")
    with pytest.raises(UserError, match="row must be JSON, got line 3 of data.jsonl"):
        read_table(path, photos)
    path.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="row must be a JSON object, got list in line 1"):
        read_table(path, photos)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="row must be JSON, got line 1"):
        read_table(path, photos)


def test_a_broken_parquet_file_is_refused(tmp_path: Path, photos: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="data must be a readable Parquet file"):
        read_table(path, photos)


def test_files_and_folders_that_are_not_there_are_refused(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UserError, match="data must be 'scenes' or an existing file, got"):
        read_table(tmp_path / "none.jsonl", photos)
    (tmp_path / "data.csv").write_text("image\n")
    with pytest.raises(UserError, match="data must end in .jsonl or .parquet"):
        read_table(tmp_path / "data.csv", photos)
    with pytest.raises(UserError, match="images must be a folder"):
        read_table(write_jsonl(tmp_path / "data.jsonl", [row()]), tmp_path / "none")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_empty_file_is_refused(kind: str, tmp_path: Path, photos: Path) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("\n")
    else:
        pd.DataFrame({"image": [], "question": [], "answer": []}).to_parquet(path)
    with pytest.raises(UserError, match="data must have at least one row, got none"):
        read_table(path, photos)


def test_equal_ids_are_refused(read: Callable[..., Dataset]) -> None:
    with pytest.raises(UserError, match="id must be unique, got 'x' again in line 2"):
        read(row(id="x"), row(id="x"))


def test_check_pictures_names_the_missing_and_the_broken(read: Callable[..., Dataset], photos: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    data = read(row("a.png", id="good"), row("none.png", id="missing"), row("broken.png", id="broken"))
    bad = check_pictures(data)
    assert [picture.id for picture in bad] == ["missing", "broken"]
    assert "none.png" in bad[0].reason and "broken.png" in bad[1].reason
    assert check_pictures(read(row("a.png"))) == []


def test_the_digest_changes_with_the_rows_and_with_the_pictures(read: Callable[..., Dataset], photos: Path) -> None:
    before = read(row()).digest
    assert read(row()).digest == before
    assert read(row(colour="red")).digest != before
    assert read(row(), limit=1).digest != before
    Image.new("RGB", (30, 20)).save(photos / "a.png")
    assert read(row()).digest != before


def test_load_dataset_takes_scenes_or_a_path(tmp_path: Path, photos: Path) -> None:
    assert load_dataset("scenes", None, limit=3, seed=1).examples[2].labels["kind"]
    data = load_dataset(str(write_jsonl(tmp_path / "data.jsonl", [row(n=1)])), photos, targets=["n:continuous"])
    assert data.targets == (Target("n", "image", "continuous"),)
    beside = load_dataset(str(write_jsonl(photos / "data.jsonl", [row()])))
    assert beside.examples[0].pictures[0].open().size == (30, 20)


def test_where_counts_lines_from_one_and_skips_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    table = open_table(path)
    assert [table.where(i) for i in range(2)] == ["line 2 of data.jsonl", "line 4 of data.jsonl"]
    assert table[1] == {"a": 2}


def test_a_second_picture_in_another_column_is_not_passed_over(read: Callable[..., Dataset]) -> None:
    for more in ({"image_b": "b.png"}, {"video": "a.mp4"}, {"masks": ["b.png"]}):
        with pytest.raises(UserError, match=f"got '{next(iter(more))}' in .*not read. Drop the column"):
            read(row(**more))
        assert len(read(row(**more), image_column="image").examples) == 1  # the column that is wanted is named
    # The same file by another path, the address it came from, texts and columns with a meaning are no second picture.
    for known in (
        {"file": "photos/a.png"}, {"url": "https://host/b.jpg"}, {"kind": "cat"}, {"group": "a.mp4"}, {"id": "7.jpg"},
    ):  # fmt: skip
        assert len(read(row(**known)).examples) == 1
