"""The authors' own files: scored as published, and written back byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.benchmarks import llava_wild, mmvet, published
from tasks.benchmarks.layout.answers import answer_rows, match_answers, read_answers
from tasks.benchmarks.layout.judge import Review
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.layout.rows import Source, json_lines, read_rows
from tasks.benchmarks.layout.scores import Scores
from tasks.benchmarks.registry import BENCHMARKS, find_benchmark

SHARED = Path(__file__).parents[4] / "shared" / "data" / "llava15-eval"
HEADS = SHARED / "heads"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the authors' evaluation files in ../shared/data/llava15-eval"
)


def values(scores: Scores, rule: str = "official") -> dict[tuple[str, str], float]:
    """The metrics of one rule by name and part, with two decimals."""
    return {(m.name, m.part): round(m.value, 2) for m in scores.metrics if m.rule == rule}


def test_pope_of_llava_13b_is_as_published() -> None:
    pope = find_benchmark("pope")
    questions = pope.read(Source((SHARED / "pope" / "llava_pope_test.jsonl",), SHARED, SHARED / "pope"))
    answers = match_answers(questions, read_answers(SHARED / "pope" / "answers-llava-v1.5-13b.jsonl"))
    scores = pope.module.score(questions, answers)
    found = values(scores)
    assert len(questions) == 8910
    assert [found["f1", name] for name in ("adversarial", "popular", "random")] == [84.46, 86.25, 87.14]
    assert found["f1", "mean"] == round(scores.main or 0, 2) == 85.95
    assert found["accuracy", "mean"] == 86.98
    assert values(scores, "lmms-eval")["f1", "all"] == 85.93, "pooled over all rows"


def test_scienceqa_of_llava_13b_is_as_published_and_its_file_is_the_authors() -> None:
    scienceqa = find_benchmark("scienceqa")
    source = Source((SHARED / "scienceqa" / "llava_test_CQM-A.json",), SHARED)
    questions = scienceqa.read(source)
    path = SHARED / "scienceqa" / "answers-llava-v1.5-13b.jsonl"
    given = read_answers(path)
    prompts = {answer.id: answer.prompt for answer in given}
    assert all(prompts[question.id] == question.prompt for question in questions), "prompts are the authors'"
    answers = match_answers(questions, given)
    scores = scienceqa.module.score(questions, answers)
    assert (values(scores)["accuracy", "all"], round(scores.main or 0, 2)) == (74.39, 71.64)
    assert {m.part: m.n for m in scores.metrics if m.rule == "official"} == {"IMG": 2017, "all": 4241}
    assert scores.notes == ("5 of 4241 answers name no option",)
    (written,) = scienceqa.module.write_submission(questions, answers, source).values()
    assert written == path.read_bytes()


def test_the_vizwiz_upload_equals_the_authors_in_all_rows() -> None:
    vizwiz = find_benchmark("vizwiz")
    source = Source((SHARED / "vizwiz" / "llava_test.first3000.jsonl",), SHARED)
    questions = vizwiz.read(source)
    path = SHARED / "vizwiz" / "answers-llava-v1.5-13b.first3000.jsonl"
    answers = match_answers(questions, read_answers(path))
    (written,) = vizwiz.module.write_submission(questions, answers, source).values()
    upload = (SHARED / "vizwiz" / "upload-llava-v1.5-13b.first3000.json").read_bytes()
    assert len(json.loads(upload)) == 3000
    assert written == upload
    assert rewritten(questions, path) == path.read_bytes()
    assert vizwiz.module.score(questions, answers).main is None, "a server scores the test split"


def rewritten(questions: list[Question], path: Path) -> bytes:
    """An answer file of the authors, read, matched and written again with the same ids."""
    given = read_answers(path)
    texts = [text for text in match_answers(questions, given) if text is not None]
    return json_lines(
        answer_rows(questions, texts, "llava-v1.5-13b", [str(answer.row["answer_id"]) for answer in given])
    )


@pytest.mark.parametrize(
    ("name", "questions", "answers"),
    [
        ("gqa", "gqa_llava_gqa_testdev_balanced", "gqa_answers_llava_gqa_testdev_balanced_llava-v1.5-13b"),
        ("textvqa", "textvqa_llava_textvqa_val_v051_ocr", "textvqa_answers_llava-v1.5-13b"),
        ("mme", "MME_llava_mme", "MME_answers_llava-v1.5-13b"),
        ("mmvet", "mm-vet_llava-mm-vet", "mm-vet_answers_llava-v1.5-13b"),
    ],
)
def test_questions_and_answers_are_read_and_written_back_unchanged(name: str, questions: str, answers: str) -> None:
    path = HEADS / f"{questions}.jsonl"
    source = Source((path,), HEADS)
    read = BENCHMARKS[name].read(source)
    assert len(read) == 20
    assert all(question.text == question.row["text"] for question in read), "prompts are the authors'"
    assert json_lines(question.row for question in read) == path.read_bytes()
    assert rewritten(read, HEADS / f"{answers}.jsonl") == (HEADS / f"{answers}.jsonl").read_bytes()


def test_answers_with_options_are_written_as_mmbenchs() -> None:
    path = HEADS / "mmbench_answers_mmbench_dev_20230712_llava-v1.5-13b.jsonl"
    questions = [
        Question(row.id("question_id"), "", recorded=row.text("prompt"), options=tuple(row.values["options"]))
        for row in read_rows(path)
    ]
    assert rewritten(questions, path) == path.read_bytes()


def test_answers_without_question_file_are_written_back() -> None:
    path = HEADS / "llava-bench-in-the-wild_answers_llava-v1.5-13b.jsonl"
    questions = [Question(row.id("question_id"), row.text("prompt")) for row in read_rows(path)]
    assert rewritten(questions, path) == path.read_bytes()


def test_the_seed_upload_is_written_back() -> None:
    path = HEADS / "seed_bench_answers_upload_llava-v1.5-13b.jsonl"
    given = read_answers(path)
    questions = [Question(int(answer.id), "?") for answer in given]
    seed = find_benchmark("seed")
    written = seed.module.write_submission(questions, match_answers(questions, given), Source((path,), HEADS))
    assert written == {"seed.jsonl": path.read_bytes()}


def test_reviews_and_grades_of_the_authors_judges_are_written_back() -> None:
    path = HEADS / "llava-bench_reviews_13b-eval1.jsonl"
    rows: list[Any] = [row.values for row in read_rows(path)]
    questions = [
        Question(
            row["question_id"], "?", category=row["category"].removeprefix("llava_bench_"),
            label=llava_wild.Reference("", "", row["answer1_id"]),
        )
        for row in rows
    ]  # fmt: skip
    reviews = [
        Review(question, row["content"], llava_wild.parse_reply(row["content"]))
        for question, row in zip(questions, rows, strict=True)
    ]
    assert llava_wild.review_files(reviews, [row["answer2_id"] for row in rows], "gpt-4") == {
        "reviews.jsonl": path.read_bytes()
    }
    scores = llava_wild.score(questions, ["?"] * 5, reviews=reviews)
    assert values(scores)["relative score", "all"] == round(100 * (10 + 6.5 + 6 + 8.5 + 2) / (8 + 9 + 8 + 9 + 9), 2)
    grades = HEADS / "mm-vet_grades_13b.json"
    own = [
        Review(Question(name, "?"), entry["content"][0], (mmvet.parse_reply(entry["content"][0]) or 0.0,))
        for name, entry in json.loads(grades.read_bytes()).items()
    ]
    assert mmvet.review_files(own, ["?"] * len(own), "gpt-4") == {"mm-vet-grades.json": grades.read_bytes()}


def test_published_rows_have_the_scores_of_the_model_zoo() -> None:
    zoo = {"LLaVA-1.5-7B": 85.9, "LLaVA-1.5-13B": 85.9}
    for row in published.PUBLISHED:
        assert row.scores.keys() <= BENCHMARKS.keys()
        if row.model in zoo:
            assert row.scores.keys() == BENCHMARKS.keys() - {"caption"}
            assert row.scores["pope"] == zoo[row.model]
