"""``layerwise-finetune mix``: the file, the composition, and bad input."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tasks.prompts import BOX, CAPTION, LETTER, REGION, SHORT
from tests.tuning.outcome import Outcome, Run, outcome_of
from tuning.cli import main
from tuning.data.llava_json import LlavaFile
from tuning.mix.composition import PartCounts, tabulate
from tuning.mix.config import FORMATS, PUBLISHED, parse_part


@pytest.fixture
def mix(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``mix`` in the folder of the parts."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, out: str = "run") -> Outcome:
        return outcome_of(main, ["mix", *arguments], tmp_path / out, capsys)

    return call


def llava(name: str, *turns: str, image: str | None = "1.jpg") -> dict[str, Any]:
    values = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": name, **({} if image is None else {"image": image}), "conversations": values}


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A file of LLaVA's, a table of questions, and a file of text alone."""
    instruct = [
        llava("a", "<image>\nWhat is it?", "A small dog.", "Where?", "On a bed."),
        llava("b", "What colour is it?\n<image>", "Red.", image="2.jpg"),
    ]
    (tmp_path / "instruct.json").write_text(json.dumps(instruct))
    table = [
        {"id": "q1", "image": "1.jpg", "question": "What is it?", "answer": "dog"},
        {"id": "q2", "image": "3.jpg", "question": "How many?", "answer": 3},
        {"id": "q3", "image": "1.jpg", "question": "Is it big?", "answer": "no"},
        {"id": "q4", "image": "1.jpg", "question": "Is it big?", "answer": "no"},
    ]
    (tmp_path / "vqa.jsonl").write_text("\n".join(map(json.dumps, table)))
    pd.DataFrame(table).astype({"answer": str}).to_parquet(tmp_path / "vqa.parquet")
    (tmp_path / "chat.json").write_text(json.dumps([llava("c", "Hello there", "Hi", image=None)]))
    return tmp_path


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    return {sample["id"]: sample for sample in json.loads((folder / "mix.json").read_text())}


@pytest.mark.parametrize("table", ["vqa.jsonl", "vqa.parquet"])
def test_parts_become_one_file_with_their_formats_and_folders(table: str, mix: Run, parts: Path) -> None:
    done = mix(
        *("--part", "llava=instruct.json,prefix=coco"), *("--part", f"vqav2={table},prefix=coco"),
        *("--part", "sharegpt=chat.json"),
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    found = samples(done.folder)
    assert set(found) == {"llava-a", "llava-b", "vqav2-q1", "vqav2-q2", "sharegpt-c"}
    assert found["llava-a"]["conversations"][0]["value"] == "<image>\nWhat is it?"  # no format prompt
    assert [turn["value"] for turn in found["vqav2-q1"]["conversations"]] == [
        f"<image>\nWhat is it?\n{SHORT}", "dog", "Is it big?", "no", "Is it big?", "no"
    ]  # fmt: skip
    assert found["vqav2-q2"]["conversations"][1]["value"] == "3"
    assert (found["vqav2-q2"]["image"], "image" in found["sharegpt-c"]) == ("coco/3.jpg", False)


def test_the_composition_is_counted(mix: Run, parts: Path) -> None:
    done = mix("--part", "llava=instruct.json", "--part", "vqav2=vqa.jsonl", "--part", "sharegpt=chat.json")
    table = pd.read_csv(done.folder / "results.csv").set_index("part")
    expected = {
        "samples": (2, 2, 1, 5),
        "text_only": (0, 0, 1, 1),
        "turns": (3, 4, 1, 8),
        "question_words": (8, 29, 2, 39),  # two format prompts of 9 words each; the placeholder is none
        "answer_words": (7, 4, 1, 12),
        "turns_short": (0, 2, 0, 2),
        "turns_letter": (0, 0, 0, 0),
        "pictures": (2, 2, 0, 3),
        "pictures_in_other_parts": (1, 1, 0, 1),
        "repeated_questions": (0, 1, 0, 2),
        "questions_in_other_parts": (1, 1, 0, 1),  # "What is it?" about 1.jpg, with and without the format prompt
        "skipped": (0, 0, 0, 0),
    }
    for column, values in expected.items():
        assert tuple(table[column]) == values, column
    assert table["share"].tolist() == pytest.approx([0.4, 0.4, 0.2, 1.0])
    assert table["published_thousands"].tolist()[:3] == [158, 83, 40]
    assert table["format"].tolist()[:3] == ["none", "short", "none"]
    assert "5 samples" in done.out and "repeated" in done.out


def test_shared_values_of_three_parts_are_those_of_sets() -> None:
    rng = np.random.default_rng(0)
    counts, asked = {}, {}
    for name in "abc":
        counts[name], asked[name] = PartCounts(), set()
        for picture in rng.permutation(30)[:20]:
            counts[name].add(llava("x", f"<image>\nQ {picture % 5}?", "a", image=f"{picture % 10}.jpg"))
            asked[name].add((picture % 5, picture % 10))
    table = tabulate(counts, dict.fromkeys("abc", "none")).set_index("part")
    for name in "abc":
        others = set().union(*(asked[other] for other in "abc" if other != name))
        assert table.loc[name, "questions_in_other_parts"] == len(asked[name] & others)
        assert table.loc[name, "repeated_questions"] == 20 - len(asked[name])
    everything = [one for name in "abc" for one in asked[name]]
    assert table.loc["all", "questions_in_other_parts"] == sum(everything.count(one) > 1 for one in set(everything))


def test_a_seed_decides_which_samples_and_their_order(mix: Run, tmp_path: Path) -> None:
    for name in "ab":
        rows = [llava(str(i), "<image>\nQ?", "A", image=f"{i}.jpg") for i in range(20)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    options = ("--part", "a=a.json,share=0.25", "--part", "b=b.json,take=7")
    texts = [list(samples(mix(*options, "--seed", seed, out=f"run{n}").folder)) for n, seed in enumerate((0, 0, 1))]
    assert texts[0] == texts[1]
    assert set(texts[0]) != set(texts[2])
    assert [sum(name.startswith(part) for name in texts[0]) for part in "ab"] == [5, 7]
    assert texts[0] != sorted(texts[0], key=lambda name: name[0])  # the parts are shuffled together


def test_a_format_prompt_is_not_added_twice_and_each_format_has_its_words(mix: Run, tmp_path: Path) -> None:
    turns = ("<image>\nWhat?", "A", f"And?\n{SHORT}", "B")
    (tmp_path / "a.json").write_text(json.dumps([llava("x", *turns)]))
    done = mix("--part", "gqa=a.json")
    assert samples(done.folder)["gqa-x"]["conversations"][0]["value"] == "<image>\nWhat?"
    (tmp_path / "a.json").write_text(json.dumps([llava("x", "<image>\nWhat?", "A")]))
    for name, prompt in zip(
        ("short", "letter", "caption", "region", "box"), (SHORT, LETTER, CAPTION, REGION, BOX), strict=True
    ):
        done = mix("--part", f"p=a.json,format={name}", out=name)
        assert samples(done.folder)["p-x"]["conversations"][0]["value"] == f"<image>\nWhat?\n{prompt}"
        assert pd.read_csv(done.folder / "results.csv")[f"turns_{name}"].tolist() == [1, 1]
    assert sum(part.thousands for part in PUBLISHED.values()) == 664  # thousands, each rounded
    assert {part.format for part in PUBLISHED.values()} == set(FORMATS)


def test_rows_of_one_picture_stay_apart_if_asked(mix: Run, parts: Path) -> None:
    found = samples(mix("--part", "vqav2=vqa.jsonl,join=no").folder)
    assert len(found) == 4
    assert all(sample["conversations"][0]["value"].endswith(SHORT) for sample in found.values())


def test_unusable_samples_are_an_error_or_are_left_out_and_listed(mix: Run, tmp_path: Path) -> None:
    bad = [
        llava("ok", "<image>\nQ?", "A"), llava("one", "<image>\nQ?"), llava("two", "Q?", "A"),
        llava("gone", "<image>\nQ?", "A", image="no.jpg"), {"id": "none"},
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(bad))
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    done = mix("--part", "p=a.json", "--images", tmp_path)
    assert (done.code, done.err.count("\n"), (done.folder / "mix.json").exists()) == (2, 1, False)
    assert "--skip-bad" in done.err
    done = mix("--part", "p=a.json", "--images", tmp_path, "--skip-bad", out="b")
    assert list(samples(done.folder)) == ["p-ok"]
    skipped = pd.read_csv(done.folder / "skipped.csv").set_index("sample")["reason"].to_dict()
    assert {name.removeprefix("p-"): reason.split(",")[0] for name, reason in skipped.items()} == {
        "one": "no assistant turn", "two": "1 pictures", "gone": "its picture 'no.jpg' is missing",
        "none": "conversations is not a list of from and value",
    }  # fmt: skip
    source = LlavaFile(done.folder / "mix.json", tmp_path)
    assert source[0].turns[0] == ("Q?", "A")


ELSEWHERE = [
    ("image_path", "1.jpg"), ("image_file", "1.jpg"), ("img", "1"), ("video", "1.mp4"), ("images_list", ["1.jpg"]),
    ("photo", {"path": "1.jpg"}), ("audio", "1.wav"), ("Image", "1.jpg"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ELSEWHERE, ids=[key for key, _ in ELSEWHERE])
def test_a_picture_under_a_key_that_is_not_read_is_no_text_only_sample(
    key: str, value: Any, mix: Run, tmp_path: Path
) -> None:
    hidden = {**llava("x", "Q?", "A", image=None), key: value}
    (tmp_path / "a.json").write_text(json.dumps([hidden, llava("ok", "Q?", "A", image=None)]))
    row = {"id": "r", "question": "Q?", "answer": "A"}
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, [{**row, key: value}, {**row, "id": "s"}])))
    for part in ("p=a.json", "p=b.jsonl"):
        done = mix("--part", part, out=f"bad-{part[2]}")
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert f"{key!r} holds media that are not read" in done.err
        assert not (done.folder / "mix.json").exists()
        done = mix("--part", part, "--skip-bad", out=f"kept-{part[2]}")
        assert (done.code, len(samples(done.folder))) == (0, 1)
        assert len(pd.read_csv(done.folder / "skipped.csv")) == 1


def test_other_keys_that_are_not_read_are_said(mix: Run, tmp_path: Path) -> None:
    rows = [{**llava(str(i), "<image>\nQ?", "A"), "source": "a", "url": "http://h/1.jpg"} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert "not read: source (3), url (3)" in mix("--part", "p=a.json").out


def test_pictures_written_as_text_have_no_folder_before_them_and_are_not_looked_for(mix: Run, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    text = f"data:image/png;base64,{base64.b64encode((tmp_path / '1.png').read_bytes() * 9).decode()}"
    rows = [llava("t", "<image>\nQ?", "A", image=text), llava("f", "<image>\nQ?", "A", image="1.png")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "coco").symlink_to(tmp_path)
    done = mix("--part", "p=a.json,prefix=coco", "--images", tmp_path)
    assert done.code == 0, done.err
    assert {name: one["image"] for name, one in samples(done.folder).items()} == {"p-t": text, "p-f": "coco/1.png"}
    assert [len(LlavaFile(done.folder / "mix.json", tmp_path, follow_links=True)[i].pictures) for i in (0, 1)] == [1, 1]


@pytest.mark.parametrize(
    ("image", "part", "said"),
    [
        ("data:image/png;base64,@@", "p=a.json", "base64"), ("x" * 5000, "p=a.json", "is missing"),
        ("../1.jpg", "p=a.json", "inside the image folder"), ("pipe", "p=a.json", "is missing"),
        ("/data/1.jpg", "p=a.json,prefix=coco", "no relative path"),
        ("http://host/1.jpg", "p=a.json,prefix=coco", "no relative path"),
        ({"bytes": "x", "path": None}, "p=a.json", "no path"),
    ],
)  # fmt: skip
def test_a_picture_that_is_no_file_of_the_folder_is_one_sentence(
    image: Any, part: str, said: str, mix: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (tmp_path / "a.json").write_text(json.dumps([llava("x", "<image>\nQ?", "A", image=image)]))
    done = mix("--part", part, "--images", folder)
    assert (done.code, done.out, done.err.count("\n"), len(done.err) < 450) == (2, "", 1, True)
    assert said in done.err and "room on the disk" not in done.err


def test_a_finished_mix_is_shown_and_a_dry_run_writes_nothing(
    mix: Run, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = mix("--part", "vqav2=vqa.jsonl,share=0.5", "--dry-run")
    first, second = done.out.splitlines()
    assert first == "vqav2: 1 of 2 samples, format short"
    assert second.startswith("1 samples, about ") and ("writing" in second or "reading parts" in second)
    assert not done.folder.exists()
    done = mix("--part", "vqav2=vqa.jsonl")
    main(["show", str(done.folder)])
    assert capsys.readouterr().out == done.out


BAD = [
    ([], "part must be given at least once"),
    (["--part", "vqa.jsonl"], "part must be NAME=FILE"),
    (["--part", "a=gone.json"], "part a must be an existing file"),
    (["--part", "a=vqa.jsonl", "--part", "a=vqa.jsonl"], "part must have a name of its own"),
    (["--part", "a=vqa.jsonl,share=0"], "share must be in (0, 1]"),
    (["--part", "a=vqa.jsonl,share=x"], "share must be a number"),
    (["--part", "a=vqa.jsonl,take=0"], "take must be a whole number >= 1"),
    (["--part", "a=vqa.jsonl,take=9"], "take must be at most 2"),
    (["--part", "a=vqa.jsonl,take=1,share=1"], "share or take"),
    (["--part", "a=vqa.jsonl,format=long"], "format must be one of none, short"),
    (["--part", "a=vqa.jsonl,join=maybe"], "join must be yes or no"),
    (["--part", "a=vqa.jsonl,speed=3"], "options of a part must be"),
    (["--part", "a=vqa.jsonl", "--images", "gone"], "images must be a folder"),
    (["--part", "a=vqa.jsonl", "--seed", "-1"], "seed must be >= 0"),
    (["--part", "a=other.jsonl"], "must have conversations as LLaVA's data, or the columns question and answer"),
    (["--part", "a=empty.json"], "at least one sample"),
    (["--part", "a=text.txt"], "must end in .jsonl or .parquet"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_sentence(arguments: list[str], said: str, mix: Run, parts: Path) -> None:
    (parts / "other.jsonl").write_text('{"text": "a"}')
    (parts / "empty.json").write_text("[]")
    (parts / "text.txt").write_text("a")
    done = mix(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err
    assert not (done.folder / "mix.json").exists()


def test_a_part_with_every_option() -> None:
    spec = parse_part("mine=a.json,take=3,format=letter,prefix=/x/y/,join=no")
    assert spec == ("mine", Path("a.json"), 1.0, 3, "letter", "x/y", False)
