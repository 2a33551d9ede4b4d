"""Published rows beside a score: marked, with the reason, where the questions are not those of the published scores."""

import json
from pathlib import Path

import pandas as pd
import pytest

from records.evaluation.cli import main
from records.evaluation.report_table import render_summary
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.published import PUBLISHED, PUBLISHED_QUESTIONS, unlike_published
from tasks.benchmarks.registry import BENCHMARKS
from tests.records.evaluation.test_judging import grades, wild  # noqa: F401 - a fixture
from tests.scripted_server import scripted_server
from tests.tasks.benchmarks.bundle import png, read, write

SHARED = Path(__file__).parents[4] / "shared" / "data" / "llava15-eval"


def test_every_benchmark_with_published_scores_has_its_number_of_questions() -> None:
    assert PUBLISHED_QUESTIONS.keys() == {name for row in PUBLISHED for name in row.scores}
    assert PUBLISHED_QUESTIONS.keys() | {"caption"} == BENCHMARKS.keys()


def questions(n: int, *, image: str = "{i}.png", first: int = 0) -> list[Question]:
    return [Question(i, f"Q{i}?", row={"image": image.format(i=i)}) for i in range(first, first + n)]


def test_another_number_of_questions_or_other_ids_are_said() -> None:
    assert unlike_published("gqa", questions(12578)) == ""
    assert (
        unlike_published("gqa", questions(500)) == "the number of questions is 500, that of the published scores 12,578"
    )
    assert unlike_published("llava_wild", questions(60)) == ""
    other = unlike_published("llava_wild", questions(60, first=1))
    assert other == "these are 60 other questions than those of the published scores"
    assert unlike_published("mmvet", questions(218)) == ""
    assert unlike_published("mmvet", [Question(f"v1_{i}", "Q?") for i in range(218)]) == "", "ids of lmms-lab"
    assert unlike_published("mmvet", questions(218, first=3)).startswith("these are 218 other questions")
    assert unlike_published("vizwiz", questions(8000, image="VizWiz_test_{i:08d}.jpg")) == ""
    assert unlike_published("vizwiz", questions(8000)).startswith("these are 8,000 other questions")
    assert unlike_published("vizwiz", [Question(i, "?") for i in range(8000)]) == "", "embedded pictures have no name"
    assert unlike_published("caption", questions(3)) == "", "there are no published rows"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the authors' files in ../shared/data/llava15-eval")
def test_the_authors_own_files_are_those_of_the_published_scores(tmp_path: Path) -> None:
    pope = read("pope", SHARED / "pope")
    science = read("scienceqa", SHARED / "scienceqa")
    assert unlike_published("pope", pope) == unlike_published("scienceqa", science) == ""
    assert unlike_published("scienceqa", [q for q in science if q.picture]) == ""
    for name, own in (("pope", pope), ("scienceqa", science)):
        assert "the number of questions is" in unlike_published(name, own[:-1])
    rows = [json.loads(line) for line in (SHARED / "pope" / "llava_pope_test.jsonl").read_text().splitlines()]
    rows[0]["image"] = "mine.jpg"
    changed = read("pope", write(tmp_path, {"llava_pope_test.jsonl": rows}))
    assert unlike_published("pope", changed) == "these are 8,910 other questions than those of the published scores"


def test_table_csv_and_report_say_that_published_rows_are_about_other_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pope, out = tmp_path / "pope", tmp_path / "run"
    write_pope(pope, scene_pictures(3, size=28), ending="?")
    words = ["--model", "random:tiny", "--benchmark", f"pope={pope}", "--new-tokens", "2", "--out", str(out)]
    main([*words, "--limit", "6"])
    printed = capsys.readouterr().out
    reason = "the number of questions is 6, that of the published scores 8,910"
    lines = printed.splitlines()
    assert any(line.split()[-1:] == ["85.9*"] and "LLaVA-1.5-7B" in line for line in lines)
    assert any("questions of published rows" in line and line.split()[-1] == "8,910*" for line in lines)
    joined = " ".join(printed.split())
    assert f"* not comparable with the score above: POPE: {reason}; answers have at most 2 tokens" in joined
    table = pd.read_csv(out / "results.csv")
    assert table["unlike_published"].str.startswith(reason).all()
    main(["show", str(out)])
    assert "8,910*" in capsys.readouterr().out
    earlier = render_summary(table.drop(columns="unlike_published"))
    assert earlier.row_count > len(PUBLISHED) // 2, "a table from before the column"
    main(["report", str(out), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "unlike_published" in page and reason in page


def test_questions_that_are_left_out_and_cropped_pictures_are_reasons_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question_id": i, "image": f"{i}.jpg", "text": "Q?", "category": "default"} for i in range(3)]
    folder = write(tmp_path / "vizwiz", {"llava_test.jsonl": rows, **{f"test/{i}.jpg": png() for i in range(2)}})
    main(["--model", "random:tiny", "--benchmark", f"vizwiz={folder}", "--skip-bad", "--preprocess", "hf",
          "--new-tokens", "2", "--out", str(tmp_path / "run")])  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert "VizWiz: the number of questions is 2, that of the published scores 8,000; answers have at most 2" in printed
    assert "pictures are not padded to a square" in printed


def test_a_judged_score_is_marked_with_its_judge(
    wild: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", "random:tiny", "--benchmark", f"llava_wild={wild}", "--new-tokens", "2"]
    with scripted_server(grades) as server:
        judge = ["--judge-url", server.url, "--judge-model", "kind-judge"]
        main([*words, *judge, "--out", str(tmp_path / "run")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "scores 60; answers have at most 2 tokens; graded by kind-judge" in printed and "65.4*" in printed
