"""``benchmark-eval``: its answers against the model asked one by one, its life, its table, and bad input."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from models.llava import Llava
from models.loading.load import load
from records.evaluation import run as evaluation
from records.evaluation.answering import answer_batch
from records.evaluation.cli import main
from records.evaluation.config import EvaluationConfig
from records.evaluation.parts import read_parts
from records.evaluation.run import run_benchmark_eval
from records.evaluation.sources import open_benchmark
from records.evaluation.table import COLUMNS, MAIN
from records.options import ModelOptions
from records.processes import Processes
from records.run import FinishedRun
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tasks.errors import UserError
from tasks.prompts import SHORT
from tests.tasks.benchmarks.bundle import png, write

TINY = ModelOptions("random:tiny")


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE-style questions about three scenes."""
    folder = tmp_path_factory.mktemp("bundle") / "pope"
    write_pope(folder, scene_pictures(3, size=28), ending="?")
    return folder


@pytest.fixture(scope="module")
def tiny() -> Llava:
    """The model ``random:tiny``, loaded once."""
    return load("random:tiny", seed=0)


def config(pope: Path, out: Path, *, batch_size: int = 4, plan: str | None = None, new: int = 3) -> EvaluationConfig:
    return EvaluationConfig(
        TINY, (f"pope={pope}",), new_tokens=new, batch_size=batch_size, token_plan=plan, out=out
    )  # fmt: skip


def run(settings: EvaluationConfig, llava: Llava) -> FinishedRun:
    finished = run_benchmark_eval(settings, llava=llava)
    assert isinstance(finished, FinishedRun)
    return finished


def answers(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "answers" / "pope.jsonl").read_text().splitlines()]


def test_batches_give_the_answers_of_the_model_asked_one_by_one(pope: Path, tiny: Llava, tmp_path: Path) -> None:
    questions = open_benchmark(f"pope={pope}").questions
    for plan, sizes in (("all", (1, 8)), ("leave@1", (8,))):
        alone = [
            tiny.generate(q.picture, q.text, max_new_tokens=3, token_plan=plan)
            for q in questions
            if q.picture is not None
        ]
        for size in sizes:
            run(config(pope, tmp_path / f"{plan}{size}", batch_size=size, plan=plan), tiny)
            assert answers(tmp_path / f"{plan}{size}") == alone, (plan, size)
    assert answers(tmp_path / "all8") != answers(tmp_path / "leave@18"), "the token plan changes answers"


def test_questions_without_picture_are_answered_beside_others_and_under_a_plan(pope: Path, tiny: Llava) -> None:
    first, second = open_benchmark(f"pope={pope}").questions[:2]
    bare = type(first)("t", "What is a cat?")
    mixed = answer_batch(tiny, [first, bare, second], new_tokens=3, token_plan="leave@1")
    assert mixed[1] == tiny.generate(None, "What is a cat?", max_new_tokens=3)
    assert [mixed[0], mixed[2]] == answer_batch(tiny, [first, second], new_tokens=3, token_plan="leave@1")


def test_a_killed_run_goes_on_with_the_questions_that_are_left(pope: Path, tiny: Llava, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config(pope, whole), tiny)

    class KilledError(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run_benchmark_eval(config(pope, cut), llava=tiny, on_progress=kill)
    assert len(read_parts(cut, "pope", 100)) == 4
    with (cut / "parts" / "pope.0.jsonl").open("ab") as file:
        file.write(b'{"n": 4, "text": "cu')  # a line that was cut
    assert not (cut / "results.csv").exists()
    asked: list[int] = []
    run_benchmark_eval(
        config(pope, cut, batch_size=3), llava=tiny, on_progress=lambda stage, done, total: asked.append(done)
    )
    total = len(answers(whole))
    assert sum(asked) == total and asked[0] == 4, "the first four are not asked again"
    for name in ("results.csv", "answers/pope.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    with pytest.raises(UserError, match="new_tokens was 3, is 2"):
        run_benchmark_eval(config(pope, cut, new=2), llava=tiny)


def test_processes_share_the_questions(pope: Path, tiny: Llava, tmp_path: Path) -> None:
    settings = config(pope, tmp_path)
    one = open_benchmark(f"pope={pope}")
    parts = []
    for rank in (0, 1):
        for old in parts:
            shutil.move(tmp_path / "parts" / f"pope.{old}.jsonl", tmp_path / f"hidden{old}")
        evaluation._answer(settings, tiny, one, "all", Processes(rank, 2), lambda *_: None)
        assert [path.name for path in (tmp_path / "parts").iterdir()] == [f"pope.{rank}.jsonl"]
        own = read_parts(tmp_path, "pope", len(one.questions))
        assert {index // 4 % 2 for index in own} == {rank}
        parts.append(rank)
    shutil.move(tmp_path / "hidden0", tmp_path / "parts" / "pope.0.jsonl")
    assert sorted(read_parts(tmp_path, "pope", 1000)) == list(range(len(one.questions)))


def test_command_table_show_score_and_report(pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["--model", "random:tiny", "--benchmark", f"pope={pope}", "--new-tokens", "2"]
    main([*words, "--out", str(out)])
    printed = capsys.readouterr().out
    for text in ("LLaVA-1.5-13B", "InstructBLIP-13B", "78.9", "arXiv 2310.03744v2", "by lmms-eval's rule"):
        assert text in printed
    table = pd.read_csv(out / "results.csv")
    assert tuple(table.columns) == COLUMNS
    assert (table.loc[0, "metric"], table.loc[0, "rule"]) == (MAIN, "official")
    main(["show", str(out)])
    assert capsys.readouterr().out == printed.partition("\n")[2]
    scored = ["score", "pope", "--answers", str(out / "answers" / "pope.jsonl"), "--questions", str(pope)]
    main([*scored, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["score"] == pytest.approx(table.loc[0, "score"])
    assert found["metrics"][0]["part"] == "mean"
    main(scored)
    assert "POPE, mean F1" in capsys.readouterr().out
    main(["report", str(out), "--out", str(tmp_path / "report.html")])
    assert "scores of benchmarks" in (tmp_path / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    main([*words, "--out", str(tmp_path / "dry"), "--dry-run"])
    assert "questions of pope: at least" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_a_server_scores_what_has_no_labels_and_gets_an_upload(
    tiny: Llava, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question_id": i, "image": "a.png", "text": f"Q{i}?", "category": "default"} for i in (0, 1, 2)]
    rows[2]["image"] = "gone.png"
    folder = write(tmp_path / "vizwiz", {"llava_test.jsonl": rows, "test/a.png": png()})
    settings = EvaluationConfig(
        TINY, (f"vizwiz={folder}",), new_tokens=2, skip_bad=True, limit=1, out=tmp_path / "run"
    )  # fmt: skip
    finished = run(settings, tiny)
    assert pd.isna(finished.results.loc[0, "score"])
    assert "only 1 of 3 questions are asked" in finished.notes[0] and "a server scores" in finished.notes[0]
    assert len(json.loads((tmp_path / "run" / "uploads" / "vizwiz" / "vizwiz.json").read_text())) == 1
    settings = EvaluationConfig(TINY, (f"vizwiz={folder}",), new_tokens=2, skip_bad=True, out=tmp_path / "more")
    assert "1 questions are left out, so the score is not the official one" in run(settings, tiny).notes[0]
    assert "gone.png" in (tmp_path / "more" / "skipped.csv").read_text()
    written = ["score", "vizwiz", "--answers", str(tmp_path / "run/answers/vizwiz.jsonl"), "--questions", str(folder)]
    main([*written, "--limit", "1", "--uploads", str(tmp_path / "up")])
    assert "score: none here, a server gives it" in capsys.readouterr().out
    assert (tmp_path / "up" / "vizwiz.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "benchmark must be given, got none"),
        (["--benchmark", "popes=x"], "benchmark must be one of vqav2, gqa"),
        (["--benchmark", "pope"], "benchmark must be NAME=FOLDER, got 'pope'"),
        (["--benchmark", "pope=gone"], "benchmark must name an existing folder, got 'gone'"),
        (["--benchmark", "mme=POPE"], "benchmark folder must contain llava_mme.jsonl or Parquet files"),
        (["--benchmark", "pope=POPE", "--benchmark", "pope=POPE"], "benchmark must be named once"),
        (
            ["--benchmark", "pope=POPE", "--benchmark", "mme=x", "--labels", "POPE"],
            "labels must be left out with several",
        ),
        (["--benchmark", "pope=POPE", "--images", "gone"], "images must exist, got 'gone'"),
        (["--benchmark", "pope=POPE", "--images", "POPE"], "picture must exist, got 'test-0-300000.png'"),
        (["--benchmark", "pope=POPE", "--questions", "gone"], "questions must exist"),
        (["--benchmark", "pope=POPE", "--limit", "0"], "limit must be >= 1, got 0"),
        (["--benchmark", "pope=POPE", "--new-tokens", "0"], "new-tokens must be >= 1"),
        (
            ["--benchmark", "pope=POPE", "--new-tokens", "1000000000"],
            "new-tokens must be at most 65536, got 1000000000",
        ),
        (["--benchmark", "pope=POPE", "--batch-size", "0"], "batch-size must be >= 1"),
        (["--benchmark", "pope=POPE", "--token-plan", "leave@99"], "layer must be in [0, 4), got 99"),
        (["score"], "benchmark must be one of vqav2"),
        (["score", "pope"], "answers must be given"),
        (["score", "pope", "--answers", "gone"], "questions must be given"),
        (["score", "pope", "--answers", "gone", "--questions", "POPE"], "answers must be an existing file, got 'gone'"),
        (
            ["score", "pope", "--answers", "OTHER", "--questions", "POPE"],
            "got one for 99, which the questions do not have",
        ),
        (["score", "pope", "--answers", "FEW", "--questions", "POPE"], "answers must cover every question"),
        (
            ["score", "pope", "--answers", "UNLIKE", "--questions", "POPE"],
            "answers must belong to the questions, got the prompt 'Is there a zebra?",
        ),
        (
            ["score", "gqa", "--answers", "FEW", "--questions", "GQA", "--labels", "labels.json"],
            "labels must belong to the questions, got none for 1 questions of gqa in 'labels.json'",
        ),
        (
            ["score", "pope", "--answers", "FEW", "--questions", "POPE", "--uploads", "few.jsonl"],
            "uploads must be a folder, got the file 'few.jsonl'",
        ),
        (["score", "gqa", "--answers", "FEW", "--questions", "GQA"], "labels must be given to score gqa"),
        (["make-pope"], "out must be given"),
        (["make-pope", "--out", "POPE"], "out must be a new or empty folder"),
        (["make-pope", "--out", "new", "--pictures", "0"], "pictures must be >= 1"),
        (["make-pope", "--out", "new", "--data", "gone.jsonl"], "gone.jsonl"),
        (["make-pope", "--out", "new", "--size", "1000000"], "size must be at most 4096 pixels, got 1000000"),
        (["make-pope", "--out", "new", "--data", "eps.jsonl"], "picture must be a readable image file"),
        (["make-pope", "--out", "new", "--data", "linked.jsonl"], "Add --follow-links to follow links."),
        (["score", "pope", "--answers", "FEW", "--questions", "pipe.json"], "got 'pipe.json' (it is a named pipe"),
        (["score", "pope", "--answers", "FEW", "--questions", "pipe.jsonl"], "existing file|named pipe"),
        (["score", "pope", "--answers", "pipe.json", "--questions", "POPE"], "answers must be an existing file"),
        (
            ["score", "gqa", "--answers", "FEW", "--questions", "GQA", "--labels", "pipe.json"],
            "got 'pipe.json' (it is a named pipe",
        ),
        (["--benchmark", "pope=POPE", "--labels", "pipes"], "coco_pope_random.json' (it is a named pipe"),
        (["show", "gone"], "run must be a folder that benchmark-eval wrote"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: list[str], said: str, pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    few = {"question_id": 1, "text": "Yes"}
    files = {"other.jsonl": [{**few, "question_id": 99}], "few.jsonl": [few], "gqa.jsonl": [few | {"image": "a"}]}
    unlike = few | {"prompt": f"Is there a zebra?\n{SHORT}"}
    for name in ("pipe.json", "pipe.jsonl", "pipes/coco_pope_random.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    files |= {f"{name}.jsonl": [{"image": f"{name}.png", "objects": ["cat"]}] for name in ("eps", "linked")}
    write(tmp_path, {"eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"})
    (tmp_path / "linked.png").symlink_to(pope / "val2014" / "test-0-300000.png")
    write(tmp_path, files | {"unlike.jsonl": [unlike], "labels.json": {"7": {"answer": "yes"}}})
    named = {
        "POPE": str(pope),
        "OTHER": "other.jsonl",
        "FEW": "few.jsonl",
        "GQA": "gqa.jsonl",
        "UNLIKE": "unlike.jsonl",
    }
    given = [word.replace("=POPE", f"={pope}") if "=" in word else named.get(word, word) for word in words]
    is_run = not words or words[0].startswith("--")
    with pytest.raises(SystemExit) as end:
        main([*given, *(["--model", "random:tiny", "--out", "run"] if is_run else [])])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert any(text in error for text in said.split("|"))
    assert error.count("\n") == 1 and len(error) < 500
    assert not (tmp_path / "run").exists() and not (tmp_path / "new").exists()


def test_linked_pictures_are_followed_if_asked(pope: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pope / "val2014" / "test-0-300000.png"
    (tmp_path / "a.png").symlink_to(source)
    write(tmp_path, {"rows.jsonl": [{"image": "a.png", "objects": ["cat"]}, {"image": "b.png", "objects": ["dog"]}]})
    (tmp_path / "b.png").symlink_to(source)
    main(["make-pope", "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "new"), "--follow-links"])
    assert "about 2 pictures" in capsys.readouterr().out
    assert (tmp_path / "new" / "val2014" / "a.png").read_bytes() == source.read_bytes()


def test_escapes_in_a_category_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question_id": i, "image": "a.png", "text": "Q?", "category": "random\x1b[31mRED\x07", "answer": "yes"}
        for i in (0, 1)
    ]
    given = [{"question_id": row["question_id"], "text": "Yes"} for row in rows]
    write(tmp_path, {"q.jsonl": rows, "a.jsonl": given})
    words = ["score", "pope", "--answers", str(tmp_path / "a.jsonl"), "--questions", str(tmp_path / "q.jsonl")]
    for more in ([], ["--json"]):
        main([*words, *more])
        printed = capsys.readouterr().out
        assert "RED" in printed and not {"\x1b", "\x07"} & set(printed)


@pytest.mark.smol
def test_smol_answers_questions_about_scenes(tmp_path: Path) -> None:
    llava = load("smol")
    write_pope(tmp_path / "scenes", scene_pictures(3, size=llava.image_size), ending="?")
    settings = EvaluationConfig(
        ModelOptions("smol"), (f"pope={tmp_path / 'scenes'}",), new_tokens=2, batch_size=16, out=tmp_path / "run"
    )
    finished = run(settings, llava)
    main_row = finished.results.iloc[0]
    assert main_row["score"] > 80, "the model was trained on such questions; always yes gives 66.7"
    assert set(answers(tmp_path / "run")) <= {"yes", "no", "Yes", "No"}
