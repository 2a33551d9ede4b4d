"""The official rules: every step by hand, and the answers of LLaVA-1.5-13B scored as published."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.rules import pope
from tasks.rules.pope import yes_or_no
from tasks.rules.scienceqa import option_letter
from tasks.rules.vqav2 import CONTRACTIONS, accuracy, normalise

SHARED = Path(__file__).parents[4] / "shared" / "data" / "llava15-eval"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the authors' evaluation files in ../shared/data")


def lines(name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file of the authors."""
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("answer", "evalai", "script"),
    [
        ("The Cat.", "cat", "cat"),
        ("an apple", "apple", "apple"),
        ("two", "2", "2"),
        ("none", "0", "0"),
        ("ten dogs", "10 dogs", "10 dogs"),
        ("1,000", "1000", "1000"),
        ("3.5", "3.5", "3.5"),
        ("3.5.", "3.5", "3.5"),
        ("red, white", "red white", "red white"),
        ("a,b", "ab", "b"),  # the processor deletes the comma; the script makes it a space, and drops the article
        ("black/white", "black white", "black white"),
        ("black / white", "black  white".replace("  ", " "), "black white"),
        ("1,000/day", "1000 day", "1000day"),  # a comma in a number: the script deletes every mark
        ("dont know", "don't know", "don't know"),
        ("itd rain", "it'd rain", "it'd rain"),
        ("4 oclock", "4 o'clock", "4 o'clock"),
        ("Macy's", "macy 's", "macy's"),
        ("somebody'd", "somebodyd", "somebodyd"),  # as odd as in the published table
        ("yes\n", "yes", "yes"),
        ("t-shirt", "t shirt", "t shirt"),
        ("what?", "what", "what"),
        ("?", "", ""),
        ("." * 40, "." * 8, "." * 8),  # at most 32 full stops are removed
    ],
)
def test_normal_form_by_both_forms_of_the_script(answer: str, evalai: str, script: str) -> None:
    assert normalise(answer) == evalai
    assert normalise(answer, evalai=False) == script


def test_the_table_of_contractions_is_whole() -> None:
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["ow's'at"] == CONTRACTIONS["'ow'sat"] == "'ow's'at"


@pytest.mark.parametrize(("people", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_with_ten_answers_equals_the_published_values(people: int, expected: float) -> None:
    answers = ["yes"] * people + ["no"] * (10 - people)
    assert accuracy("Yes", answers) == pytest.approx(expected)


def test_accuracy_of_one_answer_is_exact_match_and_of_none_an_error() -> None:
    assert accuracy("the cat", ["cat"]) == 1.0
    assert accuracy("dog", ["cat"]) == 0.0
    assert accuracy("?", ["!"]) == 0.0
    with pytest.raises(UserError, match="answers must have at least one entry"):
        accuracy("yes", [])


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("A", "A"),
        ("B. a cat", "B"),
        ("The answer is B.", "B"),
        ("Well. The answer is C, I think.", "C"),
        ("The answer is B. The answer is C.", None),  # twice
        ("The answer is B", None),  # the pattern wants one more character
        ("the answer is B.", None),
        ("B.", None),  # no space after it
        ("(C)", None),
        ("D: a cat", None),
        ("b", None),
        ("A cat", None),
        ("F", None),
        ("The answer is F.", None),
        ("", None),
    ],
)
def test_option_letter_by_the_script(prediction: str, letter: str | None) -> None:
    assert option_letter(prediction) == letter


@pytest.mark.parametrize(
    ("prediction", "verdict"),
    [
        ("Yes", "yes"),
        ("No, there is none", "no"),
        ("There is not a cat. Yes", "no"),
        ("Yes. No dog, though", "yes"),
        ("I see a notebook", "yes"),
        ("maybe", "yes"),
        ("NO", "yes"),  # case matters
        ("Not at all", "yes"),
        ("no\nyes", "yes"),  # words are separated by spaces alone
        ("", "yes"),
    ],
)
def test_yes_or_no_by_the_script(prediction: str, verdict: str) -> None:
    assert yes_or_no(prediction) == verdict


def test_pope_scores_by_hand() -> None:
    found = pope.score(["Yes", "Yes", "No", "No", "Yes"], ["yes", "no", "yes", "no", "yes"])
    assert found == pytest.approx((3 / 5, 2 / 3, 2 / 3, 2 / 3, 3 / 5, 5))
    assert pope.score(["No"], ["yes"]) == (0.0, 0.0, 0.0, 0.0, 0.0, 1)
    for predictions, labels in (([], []), (["Yes"], ["maybe"]), (["Yes"], ["yes", "no"])):
        with pytest.raises(UserError, match="labels must be yes or no"):
            pope.score(predictions, labels)


@needs_shared
def test_pope_of_llava_13b_is_as_published() -> None:
    answers = {row["question_id"]: row["text"] for row in lines("pope/answers-llava-v1.5-13b.jsonl")}
    f1 = {}
    for category in ("adversarial", "popular", "random"):
        questions = [row for row in lines("pope/llava_pope_test.jsonl") if row["category"] == category]
        labels = [row["label"] for row in lines(f"pope/coco_pope_{category}.json")]
        f1[category] = 100 * pope.score([answers[row["question_id"]] for row in questions], labels).f1
    assert {name: round(value, 2) for name, value in f1.items()} == {
        "adversarial": 84.46, "popular": 86.25, "random": 87.14,
    }  # fmt: skip
    assert sum(f1.values()) / 3 == pytest.approx(85.95, abs=0.005)


@needs_shared
def test_scienceqa_of_llava_13b_is_as_published() -> None:
    saved = json.loads((SHARED / "scienceqa" / "answers-llava-v1.5-13b.jsonl").read_text(encoding="utf-8"))
    rows = saved["correct"] + saved["incorrect"]
    assert len(rows) == 4241
    right = [option_letter(row["pred"]) == row["ground_truth"] for row in rows]
    pictured = [ok for ok, row in zip(right, rows, strict=True) if row["is_multimodal"]]
    assert round(100 * sum(right) / len(rows), 2) == 74.39
    assert (len(pictured), round(100 * sum(pictured) / len(pictured), 2)) == (2017, 71.64)
    assert sum(option_letter(row["pred"]) is None for row in rows) == 5


@needs_shared
def test_the_vizwiz_upload_of_llava_13b_is_the_authors() -> None:
    answers = lines("vizwiz/answers-llava-v1.5-13b.first3000.jsonl")
    upload = json.loads((SHARED / "vizwiz" / "upload-llava-v1.5-13b.first3000.json").read_text(encoding="utf-8"))
    assert len(answers) == len(upload) == 3000
    assert [normalise(row["text"]) for row in answers] == [row["answer"] for row in upload]
