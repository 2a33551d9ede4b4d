"""Captions in the layouts that people have, joined to rows by picture; what is missing is counted or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UserError
from tasks.instructions.described import read_described
from tasks.prompts import CAPTION
from tasks.readers.caption_files import read_captions
from tasks.readers.load_dataset import load_dataset

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 9, "file_name": "a.jpg", "height": 2, "width": 2}, {"id": 4, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 4, "caption": "A  bird.\n"},
        {"id": 2, "image_id": 9, "caption": "A cat."},
        {"id": 3, "image_id": 9, "caption": "One cat, asleep."},
    ],
}
KARPATHY = {
    "dataset": "flickr30k",
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A cat.", "tokens": ["a", "cat"]},
                                                                {"raw": "One cat, asleep."}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "A bird."}]},
    ],
}  # fmt: skip
TOKEN = "a.jpg#0\tA cat.\na.jpg#1\tOne cat, asleep.\n\nb.jpg#0\tA  bird.\n"
BARS = "image_name| comment_number| comment\na.jpg| 0| A cat.\na.jpg| 1| One cat, asleep.\nb.jpg| 0|  A bird.\n"
COMMAS = 'image,caption\na.jpg,A cat.\na.jpg,"One cat, asleep."\nb.jpg,A bird.\n'
LAYOUTS = {
    "captions_val2017.json": json.dumps(COCO),
    "dataset_flickr30k.json": json.dumps(KARPATHY),
    "results_20130124.token": TOKEN,
    "results.csv": BARS,
    "captions.txt": COMMAS,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_captions(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LAYOUTS[name])
    found = read_captions(tmp_path / name)
    assert found.of("val2017/a.jpg") == ("A cat.", "One cat, asleep.")
    assert found.of("b.jpg") == ("A bird.",) and found.of("c.jpg") == ()


def test_the_row_of_flickr30ks_csv_that_lacks_a_bar_is_read(tmp_path: Path) -> None:
    lines = [
        "image_name| comment_number| comment", "a.jpg| 3| A dog jumps .", "a.jpg| 4   A dog runs across the grass .",
        "b.jpg| 0| 4   dogs | run .", "",
    ]  # fmt: skip
    (tmp_path / "results.csv").write_text("\n".join(lines))
    found = read_captions(tmp_path / "results.csv")
    assert found.of("a.jpg") == ("A dog jumps .", "A dog runs across the grass .")
    assert found.of("b.jpg") == ("4 dogs | run .",)


def test_cocos_split_of_karpathy_names_pictures_with_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "dataset_coco.json"
    images = [{"filepath": folder, "filename": "1.jpg", "sentences": [{"raw": folder}]} for folder in ("train", "val")]
    path.write_text(json.dumps({"images": images}))
    found = read_captions(path)
    assert found.of("val/1.jpg") == ("val",)
    with pytest.raises(UserError, match=r"file names repeat, got 'train/1.jpg' and 'val/1.jpg'"):
        found.of("1.jpg")


@pytest.mark.parametrize("name", LAYOUTS)
def test_instructions_are_written_from_every_layout(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LAYOUTS[name])
    found = {picture.image: picture.captions for picture in read_described(tmp_path / name).pictures}
    assert found == {"a.jpg": ("A cat.", "One cat, asleep."), "b.jpg": ("A bird.",)}


def rows(folder: Path, *names: str, **more: object) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * number, np.uint8)).save(folder / name)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": name, "kind": "x", **more}) + "\n" for name in names))
    return path


def test_rows_are_joined_by_picture_and_those_without_captions_stay(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    path = rows(tmp_path, "b.jpg", "other.jpg", "a.jpg")
    read = load_dataset(str(path), captions=tmp_path / "c.json")
    assert [example.captions for example in read.examples] == [("A bird.",), (), ("A cat.", "One cat, asleep.")]
    assert [example.question for example in read.examples] == [CAPTION] * 3
    assert [example.answer for example in read.examples] == ["A bird.", "", "A cat."]
    (tmp_path / "d.json").write_text(json.dumps(COCO).replace("bird", "gull"))
    assert load_dataset(str(path), captions=tmp_path / "d.json").digest != read.digest
    asked = load_dataset(str(rows(tmp_path, "a.jpg", question="Is it?", answer="yes")), captions=tmp_path / "c.json")
    assert (asked.examples[0].question, asked.examples[0].answer) == ("Is it?", "yes")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "layout that is known, got JSONDecodeError"),
        ("x.json", "[]", "layout that is known"),
        ("x.json", '{"images": []}', "at least one caption, got none"),
        ("x.json", '{"images": [{"id": 1}], "annotations": []}', "KeyError: 'file_name'"),
        ("x.json", json.dumps({**COCO, "annotations": [{"image_id": 5, "caption": "x"}]}), "KeyError: 5"),
        ("x.json", json.dumps({**COCO, "annotations": [{"image_id": 9, "caption": 3}]}), "with caption 3"),
        ("x.token", "a.jpg#0\tA cat.\nb.jpg A bird.\n", "line 2 must be a picture, #, a number, a tab"),
        ("x.csv", "name,words\na,b\n", "columns name, words"),
        ("x.csv", "image,caption\na.jpg\n", "row 2 has 1 columns"),
        ("x.csv", "", "columns none"),
        ("x.csv", "image_name| comment_number| comment\na.jpg| 0| A cat.\na.jpg| 2 cats.\n", "row 3 has 2 columns"),
        ("x.csv", "image_name| comment_number| comment\na.jpg| 4\n", "row 2 has 2 columns"),
        ("x.csv", "image_name| comment_number| comment\na.jpg| A  cat.\n", "row 2 has 2 columns"),
        ("x.csv", "image_name| comment_number| comment\na.jpg 0| A cat.\n", "row 2 has 2 columns"),
        ("x.csv", "image_name| comment_number| comment\na.jpg\n", "row 2 has 1 columns"),
        ("x.csv", "image| kind| caption\na.jpg| 4   A cat.\n", "row 2 has 2 columns"),
        ("x.token", "", "at least one caption, got none"),
    ],
)
def test_other_layouts_are_one_sentence(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_captions(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_captions_that_do_not_belong_to_the_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    with pytest.raises(UserError, match="captions must describe pictures of the data, got none of 1 rows"):
        load_dataset(str(rows(tmp_path, "z.jpg")), captions=tmp_path / "c.json")
    with pytest.raises(UserError, match="got a file of captions and the column 'caption'"):
        load_dataset(str(rows(tmp_path, "a.jpg", caption="Its own.")), captions=tmp_path / "c.json")
    with pytest.raises(UserError, match=r"file names repeat, got 'a.jpg' in 'c.json' for 'one/a.jpg' and 'two/a.jpg'"):
        load_dataset(str(rows(tmp_path, "one/a.jpg", "two/a.jpg")), captions=tmp_path / "c.json")
    with pytest.raises(UserError, match="captions must go with a JSONL or Parquet file"):
        load_dataset("scenes", captions=tmp_path / "c.json")
    with pytest.raises(UserError, match="captions must be a readable file"):
        load_dataset(str(rows(tmp_path, "a.jpg")), captions=tmp_path / "missing.json")


def test_line_breaks_inside_a_caption_are_white_space(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('image,caption\r\n1.jpg,"A dog\nruns\u2028away"\r\n2.jpg,A cat\r\n'.encode())
    found = read_captions(tmp_path / "a.csv")
    assert (found.of("1.jpg"), found.of("2.jpg")) == (("A dog runs away",), ("A cat",))
    (tmp_path / "a.token").write_text("1.jpg#0\tA dog\x85runs .\r\n")
    assert read_captions(tmp_path / "a.token").of("1.jpg") == ("A dog runs .",)
