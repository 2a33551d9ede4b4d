"""Captions: read from files and scenes, and put in place of the picture with the question unchanged."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.inputs import prepare
from models.llava import Llava
from models.tokens import token_mask
from tasks.captions import captioned, captioned_examples
from tasks.errors import UserError
from tasks.prompts import CAPTION
from tasks.readers.load_dataset import read_table
from tasks.scenes.datasets import scenes_dataset


def table(folder: Path, *rows: dict[str, object]) -> Path:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "a.png")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", **row}) + "\n" for row in rows))
    return path


def test_a_file_of_captions_asks_for_a_caption(tmp_path: Path) -> None:
    data = read_table(
        table(tmp_path, {"captions": ["A black  square.", "Nothing."], "kind": "x"}, {"caption": "Dark."})
    )
    first, second = data.examples
    assert (first.captions, second.captions) == (("A black square.", "Nothing."), ("Dark.",))
    assert (first.question, first.answer) == (CAPTION, "A black square.")
    assert dict(first.labels) == {"kind": "x"}  # captions are no labels


def test_a_question_of_the_file_is_kept_beside_captions(tmp_path: Path) -> None:
    data = read_table(table(tmp_path, {"caption": "Dark.", "question": "Is it dark?", "answer": "yes"}))
    assert (data.examples[0].question, data.examples[0].answer) == ("Is it dark?", "yes")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": 3}, "caption must be text or a list of texts, got 3"),
        ({"captions": ["x", ""]}, "captions must be text or a list of texts, got ''"),
        ({"captions": ["x"], "caption": "y"}, "row must have caption or captions, got both"),
    ],
)
def test_captions_that_are_no_text_are_an_error(row: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_table(table(tmp_path, row))


def test_examples_without_captions_are_counted(tmp_path: Path) -> None:
    data = read_table(table(tmp_path, {"caption": "Dark."}, {"question": "What?", "answer": "x", "id": "bare"}))
    with pytest.raises(UserError, match="none for 1 of 2, first 'bare'"):
        captioned_examples(data.examples)


def test_the_caption_group_holds_the_caption_and_the_question_group_the_question(llava: Llava) -> None:
    scene = scenes_dataset(n=1, size=llava.image_size).examples[0]
    shown = captioned(scene)
    assert shown.labels == scene.labels and shown.group == scene.group
    for side in ("left", "right"):
        inputs = prepare(llava, [shown, captioned(scenes_dataset(n=3, seed=5).examples[2])], padding_side=side)
        for group, words in (("caption", shown.context), ("question", shown.question)):
            ids = inputs.input_ids[0][token_mask(inputs, group, llava)[0]]
            assert llava.tokenizer.decode(ids).strip() == words
    with pytest.raises(UserError, match="group 'caption' must have a caption before the question"):
        token_mask(prepare(llava, [scene]), "caption", llava)
