"""Each benchmark's rule on hand-made files with every edge of it, against values computed by hand.

The sources of the rules are the scripts named in the modules: LLaVA's ``llava/eval`` and ``scripts`` (commit c121f04),
MME's ``calculation.py``, GQA's ``eval.py``, and lmms-eval's ``tasks/*/utils.py``.
"""

import json
import re
import zipfile
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import pytest

from tasks.benchmarks import gqa, llava_wild, mmbench, mme, mmvet, pope, seed, textvqa, vqav2
from tasks.benchmarks.layout.judge import review
from tasks.benchmarks.layout.question import Question
from tasks.errors import UserError
from tasks.prompts import LETTER, SHORT
from tests.tasks.benchmarks.bundle import found, png, read, score, uploads, write


def asked(ids: list[int], name: str = "a.jpg", **more: object) -> list[dict[str, object]]:
    """Rows of a question file."""
    return [{"question_id": i, "image": name, "text": f"Q{i}?\n{SHORT}", "category": "default", **more} for i in ids]


def test_vqav2(tmp_path: Path) -> None:
    people = [
        ["net"] * 10,
        ["2"] * 3 + ["two"] * 6 + ["three"],
        ["yes"] * 2 + ["no"] * 8,
        ["Macy's"] * 3 + ["mall"] * 7,
    ]
    folder = write(
        tmp_path,
        {
            "llava_vqav2_mscoco_test-dev2015.jsonl": asked([1, 2, 3, 4]),
            "llava_vqav2_mscoco_test2015.jsonl": asked([9, 1, 2, 3, 4]),
            "v2_mscoco_val2014_annotations.json": {
                "annotations": [
                    {"question_id": i, "answers": [{"answer": a, "answer_id": n} for n, a in enumerate(own)]}
                    for i, own in enumerate(people, 1)
                ]
            },
        },
    )
    answers = ["The net.", "Two", "YES", "Macy's"]
    # "The net." is uploaded as "net" and all ten people agree: 1. "2" is said by 9 of 10: 1. "yes" by 2: (2 x 1/3 + 8 x
    # 2/3) / 10 = 0.6. "Macy's" is uploaded as "macy 's", which the script does not join with people's "macy's": 0.
    scores = score("vqav2", folder, answers)
    assert found(scores) == {"accuracy all": 65.0}
    # lmms-eval skips the processor's first step: "macy's" matches 3 of 10 (3 x 2/3 + 7 x 1) / 10 = 0.9.
    assert found(scores, "lmms-eval") == {"accuracy all": 87.5}
    (upload,) = uploads("vqav2", folder, ["The net.", None, "YES", ""]).values()
    assert json.loads(upload) == [
        {"question_id": 9, "answer": ""}, {"question_id": 1, "answer": "net"}, {"question_id": 2, "answer": ""},
        {"question_id": 3, "answer": "yes"}, {"question_id": 4, "answer": ""},
    ]  # fmt: skip
    with pytest.raises(UserError, match="none for 1 of 4, the first is 2"):
        score("vqav2", folder, ["a", None, "b", "c"])


def test_the_vqa_script_normalises_only_where_people_differ() -> None:
    assert vqav2.script_accuracy("the net", ["net"] * 10) == 0.0
    assert vqav2.script_accuracy("the net", ["net"] * 9 + ["goal"]) == 1.0
    assert vqav2.script_accuracy("net", ["net\n"] * 10) == 1.0


def test_gqa(tmp_path: Path) -> None:
    labels = {
        str(i): {"answer": answer, "types": {"structural": kind, "semantic": "obj"}}
        for i, (answer, kind) in enumerate(
            [("yes", "verify"), ("dog", "query"), ("left", "choose"), ("t-shirt", "query")]
        )
    }
    folder = write(
        tmp_path,
        {"llava_gqa_testdev_balanced.jsonl": asked([0, 1, 2, 3]), "data/testdev_balanced_questions.json": labels},
    )
    answers = ["Yes.", "A dog", "LEFT..", "tshirt"]  # right, an article is not removed, right, punctuation matters
    scores = score("gqa", folder, answers)
    assert found(scores) == {
        "accuracy all": 50.0, "accuracy binary": 100.0, "accuracy open": 0.0, "accuracy verify": 100.0,
        "accuracy query": 0.0, "accuracy choose": 100.0, "accuracy semantic obj": 50.0,
    }  # fmt: skip
    assert found(scores, "lmms-eval") == {"accuracy all": 75.0}
    assert gqa.parse("Yes. ") == "yes. ", "only full stops at the very end go"
    (upload,) = uploads("gqa", folder, answers).values()
    assert json.loads(upload)[2] == {"questionId": 2, "prediction": "left"}


def test_vizwiz(tmp_path: Path) -> None:
    labels = [
        {"image": "a.jpg", "answers": [{"answer": a} for a in ["unanswerable"] * 3 + ["soup"] * 7]},
        {"image": "b.jpg", "answers": [{"answer": a} for a in ["Macy's"] * 2 + ["sign"] * 8]},
    ]
    rows = asked([0]) + asked([1], "b.jpg")
    folder = write(tmp_path, {"llava_test.jsonl": rows, "val.json": labels})
    # 3 of 10: (3 x 2/3 + 7 x 1) / 10 = 0.9; 2 of 10 in the processor's form: 0.6
    assert found(score("vizwiz", folder, ["Unanswerable", "macy's"])) == {"accuracy all": 75.0}
    (upload,) = uploads("vizwiz", folder, ["Unanswerable.", "It's 2,000"]).values()
    assert json.loads(upload) == [
        {"image": "a.jpg", "answer": "unanswerable"}, {"image": "b.jpg", "answer": "it 's 2000"},
    ]  # fmt: skip
    (folder / "val.json").unlink()
    scores = score("vizwiz", folder, ["a", "b"])
    assert scores.main is None and "server" in scores.notes[0]


def sqa_row(name: str, words: str, answer: str, image: str | None = None) -> dict[str, object]:
    turns = [{"from": "human", "value": ("<image>\n" if image else "") + words}, {"from": "gpt", "value": answer}]
    return {"id": name, **({"image": image} if image else {}), "conversations": turns}


def test_scienceqa(tmp_path: Path) -> None:
    options = "Which?\nA. one\nB. two\nC. three"
    rows = [
        sqa_row("1", options, "B"),
        sqa_row("2", f"Context: A map.\n{options}", "C", "2/image.png"),
        sqa_row("3", "Which?\nA. one\nB. two", "A", "3/image.png"),
        sqa_row("4", options, "A", "4/image.png"),
        sqa_row("5", options, "A"),
        sqa_row("6", options, "A", "6/image.png"),
    ]
    folder = write(tmp_path, {"llava_test_CQM-A.json": rows})
    questions = read("scienceqa", folder)
    assert questions[1].text == f"Context: A map.\n{options}\n{LETTER}"
    assert questions[1].prompt == f"<image>\n{questions[1].text}"
    # right, right, C is no option of two, lower case fails, missing counts as wrong, said twice fails
    answers = ["B", "C. three", "C", "a", None, "The answer is A. The answer is A."]
    scores = score("scienceqa", folder, answers)
    assert found(scores) == {"accuracy IMG": 25.0, "accuracy all": round(200 / 6, 4)}
    assert scores.main == 25.0
    # lmms-eval also takes a capital letter before a full stop without a space
    assert found(score("scienceqa", folder, ["B.two", *answers[1:]]), "lmms-eval")["accuracy all"] == round(200 / 6, 4)
    assert found(score("scienceqa", folder, ["B.two", *answers[1:]]))["accuracy all"] == round(100 / 6, 4)
    assert scores.notes == ("3 of 6 answers name no option",)
    (written,) = uploads("scienceqa", folder, answers).values()
    entry = json.loads(written)["incorrect"]
    assert [(one["question_id"], one["parsed_ans"], one["is_multimodal"]) for one in entry] == [
        ("3", "C", True), ("4", "FAILED", True), ("5", "FAILED", False), ("6", "FAILED", True),
    ]  # fmt: skip
    assert entry[2]["question"] == "Unknown"
    problems = {str(i): {"choices": ["one", "two", "three"], "answer": 2} for i in range(1, 7)}
    write(folder, {"problems.json": problems})
    assert [question.label for question in read("scienceqa", folder)] == [("C", 3)] * 6


def test_textvqa(tmp_path: Path) -> None:
    text = "What Brand?\nReference OCR token: A, B\n"
    rows = [
        {"question_id": "x", "image": "x.jpg", "text": text + SHORT, "category": "default"},
        {"question_id": "x", "image": "x.jpg", "text": f"What year?\n{SHORT}", "category": "default"},
    ]
    labels = {
        "data": [
            {"image_id": "x", "question": "what brand?", "answers": ["nokia"] * 2 + ["phone"] * 8},
            {"image_id": "x", "question": "What Year?", "answers": ["2009"] * 10},
        ]
    }
    folder = write(tmp_path, {"llava_textvqa_val_v051_ocr.jsonl": rows, "TextVQA_0.5.1_val.json": labels})
    assert found(score("textvqa", folder, ["Nokia", "in 2009"])) == {"accuracy all": 30.0}
    assert textvqa.question_of(f"Reference OCR token: A\nWhat?\n{SHORT}") == "what?"
    with pytest.raises(UserError, match="prompt must be a question, its OCR tokens"):
        textvqa.question_of("one\ntwo\nthree\nfour")
    labels["data"][1]["answers"] = ["2009"] * 9
    write(folder, {"TextVQA_0.5.1_val.json": labels})
    with pytest.raises(UserError, match="labels must have ten answers, got 9"):
        score("textvqa", folder, ["a", "b"])
    labels["data"].pop()
    write(folder, {"TextVQA_0.5.1_val.json": labels})
    with pytest.raises(UserError, match="labels must cover every question, got none for 1 of 2"):
        score("textvqa", folder, ["a", "b"])


def pope_files(labels: dict[str, list[str]]) -> dict[str, object]:
    rows = [
        {"question_id": 100 * n + i, "image": f"{i}.jpg", "text": f"Is there a cat?\n{SHORT}", "category": category}
        for n, (category, own) in enumerate(labels.items())
        for i in range(len(own))
    ]
    files = {
        f"coco/coco_pope_{category}.json": [
            {"question_id": i + 1, "image": f"{i}.jpg", "text": "Is there a cat?", "label": label}
            for i, label in enumerate(own)
        ]
        for category, own in labels.items()
    }
    return {"llava_pope_test.jsonl": rows, **files}


def test_pope(tmp_path: Path) -> None:
    labels = {"random": ["yes", "yes", "no", "no"], "popular": ["yes", "no"], "adversarial": ["no", "no"]}
    folder = write(tmp_path, pope_files(labels))
    answers = ["Yes", "No", "yes, there is", "NO", "Yes. It is not", "not", "No", "no"]
    # random: yes, no, yes, yes ("NO" is no "No"): 1 of 3 yes are right, 1 of 2 found: F1 2/5. popular: yes, no: 1.
    # adversarial: no, no: F1 0, although both are right.
    scores = score("pope", folder, answers)
    got = found(scores)
    assert [got[f"f1 {name}"] for name in (*labels, "mean")] == [40.0, 100.0, 0.0, round(140 / 3, 4)]
    assert scores.main == pytest.approx(140 / 3)
    assert [got[f"accuracy {name}"] for name in (*labels, "mean")] == [25.0, 100.0, 100.0, 75.0]
    assert got["precision random"] == round(100 / 3, 4) and got["recall random"] == 50.0 and got["yes random"] == 75.0
    # lmms-eval: the text must be the label: yes, no, -, no, -, -, no, no; precision 1/1, recall 1/2; labels' yes ratio
    assert found(scores, "lmms-eval") == {
        "f1 all": round(200 / 3, 4), "accuracy all": 50.0, "precision all": 100.0, "recall all": 50.0, "yes all": 37.5,
    }  # fmt: skip
    assert pope.parse("") == "yes"


def test_pope_with_other_labels_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, pope_files({"random": ["yes", "no"]}))
    label = folder / "coco" / "coco_pope_random.json"
    lines = label.read_text().splitlines(keepends=True)
    for text, said in (
        (lines[0], "got only 1 of 'random'"),
        ("".join([*lines, lines[0]]), "got 3 for 2 questions"),
        ("".join(lines[::-1]), "order of the questions, got the picture '1.jpg'"),
        ("".join(lines).replace('"no"', '"maybe"'), "label must be yes or no, got 'maybe'"),
        (lines[0] + "[1]\n", "row must be a JSON object, got list in line 2"),
        (lines[0] + "{\n", "row must be JSON, got line 2"),
    ):
        label.write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            read("pope", folder)


def test_mme(tmp_path: Path) -> None:
    def pair(category: str, file: str) -> list[dict[str, object]]:
        return [
            {"question_id": f"{category}/{file}", "image": f"{category}/{file}", "category": category,
             "text": f"Question {i}?\n{SHORT}"} for i in (1, 2)
        ]  # fmt: skip

    rows = [*pair("count", "a.png"), *pair("count", "b.jpg"), *pair("OCR", "c.png"), *pair("code_reasoning", "d.png")]
    lines = "Question 1?  Please answer yes or no.\tYes\nQuestion 2? Please answer yes or no.\tNo\n"
    base = "MME_Benchmark_release_version"
    folder = write(
        tmp_path,
        {
            "llava_mme.jsonl": rows, f"{base}/count/a.txt": lines, f"{base}/count/b.txt": lines,
            f"{base}/OCR/questions_answers_YN/c.txt": lines, f"{base}/OCR/images/c.png": png(),
            f"{base}/code_reasoning/d.txt": lines,
        },
    )  # fmt: skip
    answers = ["Yes, two", "no", "YES", "It is not", "Y", "No", "yes", "nope"]
    # count: both right (a), one right (b): accuracy 3/4, both 1/2: 125. OCR: "Y" is other, one of two: 50.
    # code_reasoning: "nope" begins with no: 200.
    scores = score("mme", folder, answers)
    assert found(scores) == {
        "score perception": 175.0, "score cognition": 200.0, "score count": 125.0, "score OCR": 50.0,
        "score code_reasoning": 200.0,
    }  # fmt: skip
    assert scores.main == 175.0
    assert found(scores, "lmms-eval")["score OCR"] == 200.0, "lmms-eval takes the letter y"
    assert [mme.parse(text) for text in ("no", "Not yes", "It is", "")] == ["no", "no", "other", "other"]
    written = uploads("mme", folder, answers)
    assert written["count.txt"].decode().splitlines()[0] == "a.txt\tQuestion 1? Please answer yes or no.\tYes\tYes, two"
    with pytest.raises(UserError, match="two questions about each picture, got 1 for 'count/a"):
        mme.score(read("mme", folder)[:1], ["yes"])
    with pytest.raises(UserError, match="one of MME's fourteen, got 'x'"):
        mme.score([Question("x/a", "?", category="x", label="yes")], ["yes"])


def mmbench_tsv(answers: list[str]) -> str:
    picture = b64encode(png()).decode()
    rows = [
        (7, "Q?", "A hint", "one", "two", "nan", "", "cat"), (1000007, "Q?", "nan", "two", "one", "", "", "cat"),
        (8, "R?", "", "x", "None", "y", "", "dog"), (9, "S?", "", "a", "b", "c", "d", "dog"),
    ]  # fmt: skip
    head = (
        "index",
        "question",
        "hint",
        "A",
        "B",
        "C",
        "D",
        "category",
        "answer",
        "image",
        "source",
        "l2-category",
        "comment",
    )
    lines = [
        (str(i), q, hint, a, b, c, d, kind, answer, picture, "s", "l2", "")
        for (i, q, hint, a, b, c, d, kind), answer in zip(rows, answers, strict=True)
    ]
    return "\n".join("\t".join(line) for line in [tuple(head), *lines]) + "\n"


@pytest.mark.parametrize(
    ("name", "file", "tail"),
    [
        ("mmbench", "mmbench_dev_20230712.tsv", LETTER),
        ("mmbench_cn", "mmbench_dev_cn_20231003.tsv", "请直接回答选项字母。"),
    ],
)
def test_mmbench(name: str, file: str, tail: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {file: mmbench_tsv(["A", "B", "A", "D"])})
    questions = read(name, folder)
    assert [q.text for q in questions] == [
        f"A hint\nQ?\nA. one\nB. two\n{tail}", f"Q?\nA. two\nB. one\n{tail}", f"R?\nA. x\n{tail}",
        f"S?\nA. a\nB. b\nC. c\nD. d\n{tail}",
    ]  # fmt: skip
    assert questions[2].options == ("x",), "options end at the first that is missing"
    assert questions[0].prompt == "A hint\nQ?\nA. one\nB. two"
    assert questions[0].picture is not None and questions[0].picture.open().size == (12, 8)
    # question 7: one rotation wrong; 8: right; 9: a text that is no letter
    scores = score(name, folder, ["A", "A", "A.", "The last"])
    assert found(scores, mmbench.CIRCULAR) == {
        "accuracy all": round(100 / 3, 4), "accuracy cat": 0.0, "accuracy dog": 50.0,
    }  # fmt: skip
    assert found(scores, "every row") == {"accuracy all": 50.0}
    assert found(scores) == {}, "the official score is the server's"
    ((_, workbook),) = uploads(name, folder, ["A", "B", "C < D & E", "D"]).items()
    sheet = zipfile.ZipFile(BytesIO(workbook)).read("xl/worksheets/sheet1.xml").decode()
    cells = re.findall(r'<c r="([A-Z]+)(\d)"[^>]*>(?:<is><t[^>]*>|<v>)([^<]*)', sheet)
    header = {letters: text for letters, number, text in cells if number == "1"}
    assert list(header.values()) == ["index", "question", "A", "B", "C", "D", "prediction", "answer"]
    assert [text for letters, _, text in cells if letters == "G"] == ["prediction", "A", "B", "C &lt; D &amp; E", "D"]
    no_answers = write(tmp_path / "test", {file: mmbench_tsv(["", "", "", ""])})
    assert score(name, no_answers, ["A"] * 4).notes == ("a server scores the upload",)


def test_seed(tmp_path: Path) -> None:
    rows = [{**row, "question_id": name} for row, name in zip(asked([1, 2, 3, 4]), (1, 2, "v3", 4), strict=True)]
    labels = {
        "question_type": {"Scene": 1, "Action": 10},
        "questions": [
            {"question_id": name, "answer": answer, "data_type": kind, "question_type_id": number}
            for name, answer, kind, number in (
                ("v3", "B", "video", 10), ("1", "A", "image", 1), ("2", "C", "image", 1), ("4", "D", "image", 1),
            )
        ],
    }  # fmt: skip
    folder = write(tmp_path, {"llava-seed-bench.jsonl": rows, "SEED-Bench.json": labels})
    scores = score("seed", folder, ["A", "C.", "b", None])  # right; a full stop and case matter; missing is wrong
    assert found(scores) == {
        "accuracy all": 25.0, "accuracy image": round(100 / 3, 4), "accuracy video": 0.0,
        "accuracy Scene": round(100 / 3, 4), "accuracy Action": 0.0,
    }  # fmt: skip
    assert found(scores, "lmms-eval") == {"accuracy all": 50.0}, "lmms-eval takes the first character"
    (upload,) = uploads("seed", folder, ["A", "C", "B", None]).values()
    assert [json.loads(line) for line in upload.splitlines()] == [
        {"question_id": "v3", "prediction": "B"}, {"question_id": "1", "prediction": "A"},
        {"question_id": "2", "prediction": "C"},
    ]  # fmt: skip
    assert seed.parse(" A") == " A"


class Scripted:
    """A judge with prepared replies."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.prompts = list(replies), list[str]()

    def ask(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.replies[len(self.prompts) - 1]


def test_llava_bench_in_the_wild(tmp_path: Path) -> None:
    rows = [
        {"question_id": i, "image": f"00{i}.jpg", "text": f"Q{i}?", "category": kind}
        for i, kind in enumerate(("conv", "detail", "conv"))
    ]
    folder = write(
        tmp_path,
        {
            "questions.jsonl": rows,
            "context.jsonl": [
                {"id": i, "image": f"00{i}.jpg", "caption": ["One.", "Two."] if i else "A hill."} for i in range(3)
            ],
            "answers_gpt4.jsonl": [{"question_id": i, "text": f"R{i}", "answer_id": f"r{i}"} for i in range(3)],
        },
    )
    questions = read("llava_wild", folder)
    judge = Scripted("8 6\nbecause", "9, 4.5", "Both are fine.")
    scores = llava_wild.score(questions, ["a", "b", "c"], judge)
    # sums of the replies that can be read: (6 + 4.5) / (8 + 9); the authors' script scores the third -1
    assert found(scores) == {
        "relative score all": round(100 * 10.5 / 17, 4), "relative score llava_bench_conv": 75.0,
        "relative score llava_bench_detail": 50.0, "not judged unreadable": 1.0,
    }  # fmt: skip
    assert scores.notes == ("1 of 3 replies of the judge cannot be read and are left out",)
    assert judge.prompts[1].startswith(
        "[Context]\nOne.\nTwo.\n\n[Question]\nQ1?\n\n[Assistant 1]\nR1\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nb\n\n[End of Assistant 2]\n\n[System]\n"
    )
    assert judge.prompts[0].startswith("[Context]\nA hill.\n\n")
    for reply in ("", "8", "8 9 10", "0 5", "nan 5", "Assistant 1: 8\n9"):
        assert llava_wild.parse_reply(reply) is None
    assert llava_wild.score(questions, ["a", "b", "c"]).notes == ("needs a judge",)
    reviews = review(llava_wild.RUBRIC, questions, ["a", "b", "c"], Scripted("8 6", "9 9", "?"))
    (reviewed,) = llava_wild.review_files(reviews, ["x", "y", "z"], "m").values()
    written = [json.loads(line) for line in reviewed.splitlines()]
    assert written[0] == {
        "id": 1, "question_id": 0, "answer1_id": "r0", "answer2_id": "x", "category": "llava_bench_conv",
        "content": "8 6", "tuple": [8.0, 6.0],
    }  # fmt: skip
    assert "tuple" not in written[2], "no made-up grade"
    (folder / "answers_gpt4.jsonl").unlink()
    assert score("llava_wild", folder, ["a", "b", "c"]).main is None


def test_mmvet(tmp_path: Path) -> None:
    rows = [{"image": f"v1_{i}.png", "text": f"Q{i}?", "category": "conv", "question_id": i} for i in range(3)]
    labels = {
        f"v1_{i}": {"answer": answer, "capability": kinds}
        for i, (answer, kinds) in enumerate([("1<AND>5", ["ocr", "math"]), ("cat", ["rec"]), ("4<OR>four", ["ocr"])])
    }
    folder = write(tmp_path, {"llava-mm-vet.jsonl": rows, "mm-vet.json": labels})
    questions = read("mmvet", folder)
    judge = Scripted("0.5", "1.0 is right", "1.1")
    scores = mmvet.score(questions, ["x = 1", "a cat", "4"], judge)
    assert found(scores) == {
        "score all": 75.0, "score rec": 100.0, "score ocr": 50.0, "score math": 50.0, "not judged unreadable": 1.0,
    }  # fmt: skip
    assert scores.notes == ("1 of 3 replies of the judge cannot be read and are left out",)
    assert judge.prompts[0].endswith("\nQ0? | 1 <AND> 5 | x = 1 |")
    (upload,) = uploads("mmvet", folder, ["x = 1", "a cat", None]).values()
    assert upload.decode() == '{\n  "v1_0": "x = 1",\n  "v1_1": "a cat"\n}'
    assert [mmvet.parse_reply(reply) for reply in ("", "-0.1", "nan", "0.30\n")] == [None, None, None, 0.3]
    unclear = ("1 out of 10", "1 / 10", "1/10", "0_1", "1 AND 0.5", "1 of 2", "0.5 0.7", "10", "1.5", "1e0")
    assert [mmvet.parse_reply(reply) for reply in unclear] == [None] * len(unclear)
    assert [mmvet.parse_reply(reply) for reply in ("0.5\nbecause", "1.0", " 0 ")] == [0.5, 1.0, 0.0]
    assert llava_wild.parse_reply("1_0 5") is None
