"""Hugging Face layouts, answer files of other makers, POPE-style files, and files in another layout."""

import base64
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.benchmarks.layout.answers import Answer, answer_id, answer_rows, match_answers, read_answers
from tasks.benchmarks.layout.make_pope import Annotated, listed_pictures, pope_files, write_pope
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import json_lines, read_rows
from tasks.benchmarks.registry import BENCHMARKS
from tasks.errors import UserError
from tasks.prompts import LETTER, SHORT
from tasks.readers.load_dataset import load_dataset
from tests.tasks.benchmarks.bundle import found, png, read, score, write

PICTURE = {"bytes": png(), "path": None}
ABCD = {f"choice_{letter}": letter * 2 for letter in "abcd"}
OPTIONS = "A. aa\nB. bb\nC. cc\nD. dd"


@pytest.mark.parametrize(
    ("name", "row", "text", "answer"),
    [
        ("vqav2", {"question_id": 1, "answers": [{"answer": "red"}] * 10}, f"Q?\n{SHORT}", "Red"),
        ("vizwiz", {"question_id": "VizWiz_val_1", "answers": ["red"] * 10},
         f"Q?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}", "red"),
        ("textvqa", {"image_id": "x", "question_id": 7, "answers": ["red"] * 10, "ocr_tokens": ["A", "B"]},
         f"Q?\nReference OCR token: A, B\n{SHORT}", "Red."),
        ("pope", {"question_id": "1", "answer": "Yes", "category": "random"}, f"Q?\n{SHORT}", "Yes"),
        ("scienceqa", {"hint": "A map.", "choices": ["aa", "bb"], "answer": 1},
         f"Context: A map.\nQ?\nA. aa\nB. bb\n{LETTER}", "B"),
        ("seed", {"question_id": "1", "answer": "C", "data_type": "image", "question_type_id": 3, **ABCD},
         f"Q?\n{OPTIONS}\n{LETTER}", "C"),
        ("mmbench", {"index": 5, "hint": "nan", "A": "aa", "B": "bb", "C": "nan", "D": "nan", "answer": "B"},
         f"Q?\nA. aa\nB. bb\n{LETTER}", "B"),
    ],
)  # fmt: skip
def test_parquet_rows_ask_the_authors_prompt(
    name: str, row: dict[str, Any], text: str, answer: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, {"data/test-00000-of-00001.parquet": [{"question": "Q?", "image": PICTURE, **row}]})
    (question,) = read(name, folder)
    assert question.text == text
    assert question.picture is not None
    assert question.picture.open().size == (12, 8)
    assert score(name, folder, [answer]).main == 100.0


def test_parquet_rows_of_mme_gqa_and_frames_of_videos(tmp_path: Path) -> None:
    rows = [
        {"question_id": "count/1.png", "question": f"{i}? Please answer yes or no.", "answer": a, "category": "count",
         "image": PICTURE} for i, a in ((1, "Yes"), (2, "No"))
    ]  # fmt: skip
    folder = write(tmp_path / "mme", {"mme.parquet": rows})
    assert [question.text for question in read("mme", folder)] == [f"1?\n{SHORT}", f"2?\n{SHORT}"]
    assert score("mme", folder, ["Yes", "No"]).main == 200.0
    gqa = write(
        tmp_path / "gqa",
        {
            "testdev_balanced_instructions/a.parquet": [
                {"id": "1", "imageId": "n1", "question": "Q?", "answer": "red", "types": {"structural": "query"}}
            ],
            "testdev_balanced_images/a.parquet": [{"id": "n1", "image": PICTURE}],
        },
    )
    (question,) = read("gqa", gqa)
    assert question.picture is not None and question.picture.open().size == (12, 8)
    assert found(score("gqa", gqa, ["Red"]))["accuracy open"] == 100.0
    frames = [{"bytes": png((0, 0, value)), "path": None} for value in (10, 20, 30)]
    row = {"question_id": "v1", "question": "Q?", "answer": "C", "data_type": "video", **ABCD, "image": frames}
    (video,) = read("seed", write(tmp_path / "seed", {"seed.parquet": [row]}))
    assert video.picture is not None and video.picture.open().getpixel((0, 0)) == (0, 0, 20), "the frame in the middle"


def test_answer_files_of_every_form_are_matched(tmp_path: Path) -> None:
    questions = [Question(1, "a?"), Question(2, "b?")]
    forms = {
        "jsonl.jsonl": [{"question_id": 2, "text": "y"}, {"question_id": 1, "text": "x"}],
        "gqa.json": [{"questionId": "1", "prediction": "x"}, {"questionId": "2", "prediction": "y"}],
        "vqa.json": [{"question_id": 1, "answer": "x"}, {"question_id": 2, "answer": "y"}],
        "ids.json": {"1": "x", "2": "y"},
    }
    write(tmp_path, forms)
    for name in forms:
        assert match_answers(questions, read_answers(tmp_path / name)) == ["x", "y"], name


def test_questions_that_share_an_id_are_told_apart_by_their_prompts(tmp_path: Path) -> None:
    questions = [Question("a.png", "1?"), Question("a.png", "2?"), Question("a.png", "2?")]
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(answer_rows(questions, ["x", "y", "z"], "smol")))
    assert match_answers(questions, read_answers(path)[::1]) == ["x", "y", "z"]
    with pytest.raises(UserError, match="must record the prompt where questions share an id"):
        match_answers(questions, [read_answers(path)[0]._replace(prompt=None)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question_id": 9, "text": "x"}\n', "got one for 9, which the questions do not have"),
        ('{"question_id": 1, "text": "x"}\n{"question_id": 1, "text": "y"}\n', "two different ones for 1"),
        ('{"question_id": 1}\n', "row must have a text 'text', got None in line 1"),
        ('{"text": "x"}\n', "row must have an id under"),
        ("nonsense\n", "row must be JSON, got line 1"),
        ("", "at least one row"),
    ],
)
def test_answers_of_other_questions_or_layouts_are_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        match_answers([Question(1, "a?")], read_answers(path))


def test_an_answer_whose_prompt_is_another_question_is_refused_and_other_forms_of_the_prompt_are_not() -> None:
    short = "Answer the question using a single word or phrase."
    ask = "Provide a reason if the text cannot be read."
    asked = [Question(1, f"What is the brand?\nReference OCR token: A, B\n{short}")]
    for prompt in (
        asked[0].text, "What is the brand?", f"<image>\nwhat is  the brand?\n{short}", f"{ask}\nWhat is the brand?",
        short, "", None,
    ):  # fmt: skip
        assert match_answers(asked, [Answer(1, "x", prompt)]) == ["x"], prompt
    for prompt in ("What colour is it?", f"What colour is it?\n{short}", f"<image>\nIs it?\n{short}"):
        with pytest.raises(UserError, match="answers must belong to the questions, got the prompt") as error:
            match_answers(asked, [Answer(1, "x", prompt)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_question_files_of_another_layout_are_one_sentence(name: str, tmp_path: Path) -> None:
    files = BENCHMARKS[name].module.FILES
    for content in ('[{"a": 1}]', "a\tb\n1\t2\n", ""):
        (tmp_path / files.questions[0]).write_text(content)
        with pytest.raises(UserError) as error:
            read(name, tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vqav2", "gqa", "vizwiz", "textvqa", "seed", "mmvet", "mme"])
def test_labels_of_another_layout_are_one_sentence(name: str, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image": "a.jpg", "text": f"Q?\n{SHORT}", "category": "default"}]
    files = BENCHMARKS[name].module.FILES
    folder = write(tmp_path, {files.questions[0]: rows})
    labels = folder / "labels.json"
    for content in ("nonsense", '["a"]', '{"1": {}, "v1_1": {}, "data": [{}], "annotations": [{}], "questions": [{}]}'):
        labels.write_text(content)
        with pytest.raises(UserError) as error:
            BENCHMARKS[name].read(files.find(folder, labels=labels))
        assert "\n" not in str(error.value) and "labels" in str(error.value)


def test_questions_are_examples_for_probes(tmp_path: Path) -> None:
    write_pope(tmp_path / "pope", pictures())
    data = load_dataset(f"benchmark:pope={tmp_path / 'pope'}", limit=4)
    assert [target.name for target in data.targets] == ["answer", "category"]
    assert [example.labels["answer"] for example in data.examples] == ["yes", "no", "yes", "no"]
    assert data.examples[0].pictures[0].open().size == (12, 8)
    assert len({example.id for example in data.examples}) == 4
    rows = [
        {"image_id": "x", "question_id": 7, "answers": ["red"] * 4 + ["blue"] * 6, "question": "Q?", "image": PICTURE}
    ]
    textvqa = load_dataset(f"benchmark:textvqa={write(tmp_path / 'textvqa', {'a.parquet': rows})}")
    assert textvqa.examples[0].answer == "blue"
    assert [target.name for target in textvqa.targets] == ["answer"]
    for spec, more, said in (
        ("benchmark:pope", {}, "data must be benchmark:NAME=FOLDER"),
        (f"benchmark:pope={tmp_path / 'pope'}", {"split": "test"}, "split must be left out"),
    ):
        with pytest.raises(UserError, match=said):
            load_dataset(spec, **more)


def test_answer_ids_have_the_authors_form() -> None:
    assert re.fullmatch(r"[2-9A-HJ-NP-Za-km-z]{22}", answer_id("x"))
    assert answer_id("x") != answer_id("y")


def pictures() -> list[Annotated]:
    objects = [("cat", "dog"), ("cat", "tree"), ("cat", "dog"), ("bus",), ("car", "bus"), ()]
    return [Annotated(f"{i}.png", own, png) for i, own in enumerate(objects)]


def test_pope_style_files_follow_popes_three_ways_of_choosing(tmp_path: Path) -> None:
    write_pope(tmp_path / "pope", pictures())
    questions = read("pope", tmp_path / "pope")
    assert [q.id for q in questions][:2] == [1, 2]
    assert {q.category: q.id for q in reversed(questions)} == {
        "adversarial": 1,
        "random": 10000001,
        "popular": 20000001,
    }
    by = {(q.category, q.row["image"], q.label): q.text for q in questions}
    assert by["popular", "3.png", "no"] == f"Is there a cat in the image?\n{SHORT}", "the most frequent that is absent"
    assert by["adversarial", "3.png", "no"] == f"Is there a car in the image?\n{SHORT}", "seen beside a bus"
    for question in questions:
        name = question.text.split("a ", 1)[1].split(" in the image")[0]
        own = {p.name: p.objects for p in pictures()}[question.row["image"]]
        assert (name in own) == (question.label == "yes")
    labels = [question.label for question in questions]
    assert labels.count("yes") == labels.count("no")
    assert score("pope", tmp_path / "pope", [q.label or "" for q in questions]).main == pytest.approx(66.7, abs=40)
    assert pope_files(pictures(), seed=0) == pope_files(pictures(), seed=0) != pope_files(pictures(), seed=1)
    with pytest.raises(UserError, match="out must be a new or empty folder"):
        write_pope(tmp_path / "pope", pictures())


def test_pope_style_files_of_bad_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    os.mkfifo(tmp_path / "pipe.png")
    path = tmp_path / "photos.jsonl"
    for row, said in (
        ({"image": "b.png", "objects": ["cat"]}, "picture must exist, got 'b.png'"),
        ({"image": "a.png", "objects": "cat"}, "objects must be a list of names"),
        ({"image": "a.png"}, "objects must be a list of names"),
        ({"image": "eps.png", "objects": ["cat"]}, "picture must be a readable image file"),
        ({"image": "pipe.png", "objects": ["cat"]}, "picture must exist"),
        ({"image": "data:image/png;base64,@", "objects": ["cat"]}, "base64"),
        ({"image": "data:image/png;base64,aaaa", "objects": ["cat"]}, "picture must be a readable image file"),
        ({"image": math.nan, "objects": ["cat"]}, "row must have a picture under 'image'"),
        ({"image_path": "a.png", "objects": ["cat"]}, "picture must be under 'image', got 'image_path'"),
        ({"image": "a.png", "objects": ["cat"], "video": "a.mp4"}, "got 'video'"),
    ):
        path.write_text(json.dumps(row))
        with pytest.raises(UserError, match=said):
            listed_pictures(path)
    with pytest.raises(UserError, match="pictures must have objects"):
        pope_files([Annotated("a.png", ("cat",), png)])
    path.write_text(json.dumps({"image": "a.png", "objects": [{"name": "cat"}]}))
    assert [p.objects for p in listed_pictures(path)] == [("cat",)]
    assert len(read_rows(path)) == 1


def test_pope_style_pictures_may_be_written_as_text_or_embedded(tmp_path: Path) -> None:
    text = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    write(tmp_path, {
        "a.jsonl": [{"image": text, "objects": ["cat"]}, {"image": "b.png", "objects": ["dog"]}],
        "b.png": png((1, 2, 3)),
        "a.parquet": [{"image": PICTURE, "objects": ["cat"]}],
    })  # fmt: skip
    write_pope(tmp_path / "new", listed_pictures(tmp_path / "a.jsonl"))
    pictures = [question.picture for question in read("pope", tmp_path / "new")]
    assert {p.open().getpixel((0, 0)) for p in pictures if p} == {(200, 30, 30), (1, 2, 3)}
    (embedded,) = listed_pictures(tmp_path / "a.parquet")
    assert embedded.name == listed_pictures(tmp_path / "a.jsonl")[0].name


ROWS: dict[str, dict[str, Any]] = {
    "pope": {"text": "Q?", "category": "random", "answer": "yes"}, "mmvet": {"text": "Q?"}, "vqav2": {"text": "Q?"},
    "gqa": {"text": "Q?"}, "textvqa": {"text": f"Q?\n{SHORT}"}, "vizwiz": {"text": "Q?"}, "llava_wild": {"text": "Q?"},
    "seed": {"text": "Q?"}, "mme": {"text": "Q?", "category": "count"}, "scienceqa": {"question": "Q?"},
}  # fmt: skip
FILE = {name: BENCHMARKS[name].module.FILES.questions[0] for name in ROWS}


def one_row(name: str, folder: Path, **more: Any) -> Path:
    """A folder with one question."""
    row = {"question_id": 1, "id": 1, **ROWS[name], **more}
    return write(folder, {FILE[name]: [row], "a.png": png()})


@pytest.mark.parametrize("name", ROWS)
def test_a_picture_under_a_key_that_is_not_read_is_refused_in_every_benchmark(name: str, tmp_path: Path) -> None:
    for more in (
        {"image_path": "a.png"}, {"images": ["a.png"]}, {"video": "a.mp4"}, {"image": "a.png", "video": "a.mp4"},
        {"photo": {"path": "a.png"}},
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"picture must be under 'image', got '{list(more)[-1]}'"):
            read(name, one_row(name, tmp_path, **more))
    beside = {"image": "a.png", "file_name": "x/a.png", "coco_url": "http://host/b.jpg", "photo": "temple"}
    (question,) = read(name, one_row(name, tmp_path, **beside))
    assert question.picture is not None


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("empty", ["", None, math.nan, {"bytes": None, "path": None}, [], [None]])
def test_no_picture_is_written_in_many_ways(name: str, empty: Any, tmp_path: Path) -> None:
    (question,) = read(name, one_row(name, tmp_path, image=empty))
    assert question.picture is None


def test_embedded_pictures_under_another_column_are_refused(tmp_path: Path) -> None:
    row = {"question_id": 1, "question": "Q?", "category": "random", "answer": "yes"}
    with pytest.raises(UserError, match="got 'photo'"):
        read("pope", write(tmp_path / "a", {"a.parquet": [{**row, "photo": PICTURE}]}))
    with pytest.raises(UserError, match="got 'photo'"):
        read("pope", write(tmp_path / "b", {"a.parquet": [{**row, "image": PICTURE, "photo": PICTURE}]}))


@pytest.mark.parametrize(
    "given",
    [{"correct": [1], "incorrect": []}, {"correct": 1, "incorrect": 2}, {"correct": [], "incorrect": {}},
     {"correct": None, "incorrect": []}, {"correct": [], "incorrect": ["a"]}],
)  # fmt: skip
def test_sorted_answers_of_another_form_are_one_sentence(given: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match="answers must list|row must be a JSON object"):
        read_answers(tmp_path / "a.json")


@pytest.mark.parametrize("answer", [-1, 2, 7, True, 10**30])
def test_an_answer_of_scienceqa_that_is_no_choice_is_refused(answer: object, tmp_path: Path) -> None:
    row = {"id": "1", "question": "Q?", "choices": ["aa", "bb"], "answer": answer}
    with pytest.raises(UserError, match="answer must be the number of one of"):
        read("scienceqa", write(tmp_path / "a", {FILE["scienceqa"]: [row]}))
    problems = {"1": {"choices": ["aa", "bb"], "answer": answer}}
    asked = {FILE["scienceqa"]: [{"id": "1", "question": "Q?"}], "problems.json": problems}
    with pytest.raises(UserError, match="answer must be the number of one of"):
        read("scienceqa", write(tmp_path / "b", asked))
