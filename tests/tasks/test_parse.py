"""Structures that no reader may stumble over: each is refused with a reason in words."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.errors import UserError, cut, printable, shown
from tasks.readers.load_dataset import read_table
from tasks.readers.media import EMBEDDED, given_pictures, unread_media
from tasks.readers.parse import parse_json, parse_yaml

JSON = {
    "deep": ("[" * 100 + "]" * 100, "nested more than 64"),
    "very deep": ("[" * 100_000 + "]" * 100_000, "nested more than 64"),
    "a key twice": ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
    "a key twice inside": ('[{"b": {"a": 1, "a": 2}}]', "given twice"),
    "half a surrogate pair": ('{"a": ["\\ud83d"]}', "half a surrogate pair"),
    "half a pair in a key": ('{"\\uDE00": 1}', "half a surrogate pair"),
    "a number of many digits": ("1" * 5000, "digits"),
    "UTF-16": ("[1]".encode("utf-16"), "UTF-16"),
    "no UTF-8": (b'["\xe9"]', "not UTF-8"),
    "nothing": ("", "Expecting value"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_not_plain_is_refused(name: str) -> None:
    text, reason = JSON[name]
    with pytest.raises(ValueError, match=reason) as error:
        parse_json(text)
    assert len(str(error.value)) < 200


def test_plain_json_comes_through_unchanged() -> None:
    value = {"a": [1, 2.5, None, True, {"b": "😀 \u001b"}], "c": float("inf"), "d": "[" * 90}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8-sig")) == value


YAML = {
    "an alias bomb": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
    "a key twice": ("a: 1\na: 2", "given twice"),
    "a key twice inside": ("x:\n  a: 1\n  a: 2", "given twice"),
    "deep": ("[" * 90 + "]" * 90, "nested more than 64"),
    "very deep": ("[" * 20_000 + "]" * 20_000, "nested more than 64"),
    "a date that is none": ("day: 2024-13-45", "month"),
    "a tag that runs code": ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "no YAML": ("a: [1", "expected"),
    "a list as key": ("? [a]\n: 1", "unhashable"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_not_plain_is_refused(name: str) -> None:
    text, reason = YAML[name]
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)


def test_plain_yaml_comes_through_unchanged() -> None:
    assert parse_yaml("model: smol\nlayers: [0, 3]\ncontrols: false") == {
        "model": "smol", "layers": [0, 3], "controls": False,
    }  # fmt: skip


ROWS = {
    "focus as list": ({"boxes": {"x": [0, 0, 5, 5]}, "focus": ["x"]}, "focus must be one of the boxes"),
    "boxes without end": ({"boxes": {"x": [0, 0, 1e308, 5]}}, "box must be"),
    "a box of many digits": ({"boxes": {"x": [0, 0, 10**400, 5]}}, "box must be"),
    "shares": ({"boxes": {"x": [0.25, 0.5, 0.75, 1.0]}}, "box must be in pixels"),
    "shares rounded up": ({"boxes": {"x": [0.25, 0.5, 0.75, 1.0000002]}}, "box must be in pixels"),
    "a long name": ({"boxes": {"x" * 10_000: [3, 0, 2, 5]}}, "box must have left < right"),
    "a nested question": ({"question": {"a": ["b"] * 4000}}, "question must be text"),
    "a question that is no number": ({"question": float("nan")}, "question must be text"),
    "half a surrogate pair": ({"colour": "\ud83d"}, "half a surrogate pair"),
    "a path without end": ({"image": "x/" * 5000 + "../../a.png"}, "image must stay inside"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_row_is_refused_in_one_short_sentence(name: str, tmp_path: Path) -> None:
    changed, reason = ROWS[name]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "What?", "answer": "cat", **changed}))
    with pytest.raises(UserError, match=reason) as error:
        read_table(path)
    assert len(str(error.value)) < 400


LABELS = {
    "beyond 64 bits": ([2**64 + i for i in range(30)], ":class", "beyond 64 bits"),
    "huge": ([i * 1e300 for i in range(1, 31)], "", "between -1e100 and 1e100"),
    "denormal": ([i * 5e-324 for i in range(1, 31)], "", "differ by 1e-100 or more"),
}


@pytest.mark.parametrize("name", LABELS)
def test_numbers_that_cannot_be_fitted_are_refused(name: str, tmp_path: Path) -> None:
    values, kind, reason = LABELS[name]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"question": "?", "answer": "x", "n": value}) for value in values))
    with pytest.raises(UserError, match=reason):
        read_table(path, targets=[f"n{kind}"])
    assert len(read_table(path).examples) == 30  # beside other targets they do not matter


def test_a_parquet_file_of_odd_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    whole = {"question": ["?"], "answer": ["x"]}
    pq.write_table(pa.table({**whole, "day": pa.array([2**60], pa.timestamp("ms"))}), path)
    with pytest.raises(UserError, match="readable Parquet file"):
        read_table(path)
    twice = pa.Table.from_arrays([pa.array(["?"]), pa.array(["x"]), pa.array(["y"])], ["question", "answer", "answer"])
    pq.write_table(twice, path)
    with pytest.raises(UserError, match="each column once, got 'answer' twice"):
        read_table(path)
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({**whole, "name": broken}), path)
    with pytest.raises(UserError, match="readable Parquet file"):
        read_table(path)


def test_pictures_embedded_in_parquet_are_read_and_grouped(tmp_path: Path) -> None:
    from PIL import Image

    contents = []
    for colour in ("red", "blue", "red"):
        Image.new("RGB", (30, 20), colour).save(tmp_path / "x.png")
        contents.append({"bytes": (tmp_path / "x.png").read_bytes(), "path": None})
    path = tmp_path / "data.parquet"
    rows = {"question": ["?"] * 3, "answer": ["x"] * 3, "image": contents, "boxes": [{"b": [2, 2, 9, 9]}] * 3}
    pd.DataFrame(rows).to_parquet(path, row_group_size=2)
    first, second, third = read_table(path).examples
    assert [one.pictures[0].open().getpixel((0, 0)) for one in (second, first)] == [(0, 0, 255), (255, 0, 0)]
    assert first.group == third.group != second.group
    assert first.pictures[0].key == third.pictures[0].key


def test_links_out_of_the_folder_are_followed_on_request(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data" / "coco").symlink_to(tmp_path / "elsewhere")
    path = tmp_path / "data.jsonl"
    for name in ("coco/a.png", str(tmp_path / "data" / "coco" / "a.png")):
        path.write_text(json.dumps({"question": "?", "answer": "x", "image": name}))
        with pytest.raises(UserError, match="a link that leads out of it. Add --follow-links"):
            read_table(path, tmp_path / "data")
        followed = read_table(path, tmp_path / "data", follow_links=True).examples[0]
        assert followed.pictures[0].open().size == (30, 20)
    path.write_text(json.dumps({"question": "?", "answer": "x", "image": "../elsewhere/a.png"}))
    with pytest.raises(UserError, match="must stay inside"):
        read_table(path, tmp_path / "data", follow_links=True)


def test_an_address_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "x", "image": "https://example.org/a.png"}))
    with pytest.raises(UserError, match=r"got the address 'https://example.org/a.png'.*Download it first"):
        read_table(path)
    path.write_text(json.dumps({"question": "?", "answer": "x", "image": "data:image/png;base64,@@@"}))
    with pytest.raises(UserError, match="must be a path or base64 data"):
        read_table(path)


def test_a_picture_under_another_name_is_refused_where_no_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    for key, value in (("image_path", "a.png"), ("Image", "x"), ("clip", "7.mp4"), ("videos", ["7.mp4"])):
        path.write_text(json.dumps({"question": "?", "answer": "x", key: value}))
        with pytest.raises(UserError, match=f"picture must be in the column image or images, got '{key}'"):
            read_table(path)
    path.write_text(json.dumps({"question": "?", "answer": "x", "source": "no picture.", "video": None}))
    assert read_table(path).examples[0].labels["source"] == "no picture."


def test_what_counts_as_a_picture() -> None:
    assert given_pictures(None) == given_pictures("") == given_pictures([]) == given_pictures([None]) == []
    assert given_pictures("a.png") == given_pictures(["a.png"]) == ["a.png"]
    assert unread_media({"file": "x/a.png"}, ("image",), ["a.png"]) is None
    assert unread_media({"file": "x/b.png"}, ("image",), ["a.png"]) == "file"
    embedded = [f"{EMBEDDED} 0123"]
    assert unread_media({"file_name": "0001.jpg"}, ("image",), embedded) is None
    assert unread_media({"files": ["0001.jpg"]}, ("image",), embedded) == "files"
    assert unread_media({"more": "data:image/png;base64,x"}, ("image",), embedded) == "more"


def test_messages_are_short_and_hold_no_control_characters() -> None:
    error = str(UserError("name must be short, got " + "y" * 10_000 + "\x1b[31m. Shorten it."))
    assert len(error) < 400
    assert "\x1b" not in error
    assert error.endswith("Shorten it.")
    long = str(UserError("words must be few, got " + "many words " * 1000 + ". Write less."))
    assert len(long) < 400
    assert long.endswith("Write less.")
    assert printable("\u202eabc \ud83d 猫 é\n", keep="\n") == "\\u202eabc \\ud83d 猫 é\n"
    assert cut("abcdefghij", 7) == "ab...ij"
    assert len(shown(["x" * 1000] * 1000)) <= 80


def test_what_is_drawn_printed_or_written_holds_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"question": "?", "answer": "x", "family": "sum\x1b[2J", "colour": "red\x1b[31m", "na\x1bme": "a"}
    path.write_text(json.dumps(row))
    example = read_table(path).examples[0]
    assert (example.family, example.labels["colour"]) == ("sum\\x1b[2J", "red\\x1b[31m")
    with pytest.raises(UserError, match="a name without control characters"):
        read_table(path, targets=["na\x1bme"])
    row["$x$ \\frac"] = "b"  # only odd, and drawn as it is written
    path.write_text(json.dumps(row))
    assert read_table(path, targets=["$x$ \\frac"]).targets[0].name == "$x$ \\frac"
