"""Pairs of a benchmark's questions, and a sweep over them."""

import json
from pathlib import Path

import pytest

from interventions.benchmark_pairs import pair_questions
from interventions.cli import main
from interventions.config import PairOptions
from interventions.pairs import load_pairs
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tasks.errors import UserError
from tasks.example import Example, Picture
from tests.tasks.benchmarks.bundle import png, write


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE-style questions about twenty scenes."""
    folder = tmp_path_factory.mktemp("bundle") / "pope"
    write_pope(folder, scene_pictures(20, size=28), ending="?")
    return folder


def asked(rows: str) -> list[Example]:
    """Questions written as ``picture question answer``, separated by commas."""
    found = []
    for number, row in enumerate(rows.split(", ")):
        picture, question, answer = row.split(" ")
        found.append(Example(str(number), (Picture(picture, lambda: None),), question, answer, picture))  # type: ignore[arg-type,return-value]
    return found


def test_questions_of_a_pair_have_equal_words_and_other_answers_and_no_picture_is_used_twice(pope: Path) -> None:
    found = load_pairs(PairOptions(f"benchmark:pope={pope}"), seed=0)
    used = [p.key for pair in found.pairs for one in (pair.clean, pair.corrupt) for p in one.pictures]
    assert len(found.pairs) >= 5 and len(used) == len(set(used)) == 2 * len(found.pairs)
    truth = {}
    for category in ("adversarial", "popular", "random"):
        for line in (pope / "coco" / f"coco_pope_{category}.json").read_text().splitlines():
            row = json.loads(line)
            truth[row["image"], row["text"].partition("?")[0]] = row["label"]
    for pair in found.pairs:
        assert pair.clean.question == pair.corrupt.question and pair.clean.answer == pair.corrupt.answer
        assert {pair.clean.answer, pair.foil} == {"yes", "no"}
        words = pair.clean.question.partition("?")[0]
        assert truth[pair.clean.pictures[0].key, words] == pair.clean.answer
        assert truth[pair.corrupt.pictures[0].key, words] == pair.foil, "the foil is right about the other picture"
    assert {pair.clean.answer for pair in found.pairs} == {"yes", "no"}, "both answers are clean answers"
    again = load_pairs(PairOptions(f"benchmark:pope={pope}", limit=3), seed=0)
    assert [pair.id for pair in again.pairs] == [pair.id for pair in found.pairs[:3]]
    other = load_pairs(PairOptions(f"benchmark:pope={pope}", limit=3), seed=1)
    assert other.digest != again.digest
    capital = load_pairs(PairOptions(f"benchmark:pope={pope}", limit=3, capital_answers=True), seed=0)
    assert [(p.clean.answer, p.foil) for p in capital.pairs] == [
        (p.clean.answer.title(), p.foil.title()) for p in again.pairs
    ]
    assert capital.digest != again.digest


@pytest.mark.parametrize(
    ("rows", "n"),
    [
        ("a q yes, b q no", 1),
        ("a q yes, a q no", 0),  # one picture
        ("a q yes, b r no", 0),  # other words
        ("a q yes, b q Yes", 0),  # the same answer
        ("a q yes, b q no, b r yes, c r no", 1),  # b is used once, or a and c have no partner
    ],
)
def test_what_fits(rows: str, n: int) -> None:
    for seed in range(6):
        assert len(pair_questions(asked(rows), seed=seed)) == n


def test_a_sweep_runs_on_questions_of_a_benchmark(
    pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "random:tiny", "--data", f"benchmark:pope={pope}", "--limit", "2", "--layers", "0,1"]
    main([*words, "--tokens", "image", "--out", str(tmp_path / "run")])
    assert "recovered" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.csv").is_file()


def test_a_benchmark_without_pairs_is_one_sentence(pope: Path, tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.png", "text": "Q?", "category": "default"}
    vizwiz = write(tmp_path / "vizwiz", {"llava_test.jsonl": [row], "test/a.png": png()})
    one = {"question_id": 1, "image": "a.png", "text": "Is it?", "category": "random", "answer": "yes"}
    alone = write(tmp_path / "pope", {"llava_pope_test.jsonl": [one], "val2014/a.png": png()})
    for options, said in (
        (PairOptions(f"benchmark:vizwiz={vizwiz}"), "data must be questions with labels"),
        (PairOptions(f"benchmark:pope={alone}"), "data must have two questions with the same words"),
        (PairOptions(f"benchmark:pope={pope}", split="test"), "split must not be given for a benchmark"),
        (PairOptions("benchmark:pope"), "data must be benchmark:NAME=FOLDER"),
        (PairOptions(capital_answers=True), "capital-answers must go with data benchmark:NAME=FOLDER"),
    ):
        with pytest.raises(UserError, match=said):
            load_pairs(options, seed=0)
