"""``benchmark-eval`` as processes: killed and resumed, two at a time, and on photographs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from records.evaluation.cli import main
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope

ROOT = Path(__file__).parents[3]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
WRITTEN = ("answers/pope.jsonl", "results.csv")  # POPE has no server that would get an upload


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """POPE-style questions about eight scenes."""
    folder = tmp_path_factory.mktemp("scenes") / "pope"
    write_pope(folder, scene_pictures(8, size=28), ending="?")
    return folder


def started(words: list[str], **environment: str) -> "subprocess.Popen[bytes]":
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "records.evaluation.cli", *words], stdout=subprocess.DEVNULL, env=own | environment
    )


def answered(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (out / "parts").glob("*.jsonl"))


def files_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in WRITTEN}


@pytest.mark.process
def test_a_run_that_is_killed_with_batches_of_one_ends_with_the_files_of_one_with_batches_of_eight(
    pope: Path, tmp_path: Path
) -> None:
    words = ["--model", "random:tiny", "--benchmark", f"pope={pope}", "--new-tokens", "24"]
    main([*words, "--batch-size", "8", "--out", str(tmp_path / "whole")])
    whole = files_of(tmp_path / "whole")
    n = whole["answers/pope.jsonl"].count(b"\n")
    cut = tmp_path / "cut"
    process = started([*words, "--batch-size", "1", "--out", str(cut)])
    while process.poll() is None and answered(cut) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= answered(cut) < n and not (cut / "results.csv").exists() and not (cut / "answers").exists()
    before = (cut / "parts" / "pope.0.jsonl").read_bytes()
    main([*words, "--batch-size", "8", "--out", str(cut)])
    assert files_of(cut) == whole
    parts = (cut / "parts" / "pope.0.jsonl").read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert parts.startswith(kept) and parts.count(b"\n") == n, "no question is asked twice"
    assert len({json.loads(line)["text"] for line in whole["answers/pope.jsonl"].splitlines()}) > 1


@pytest.mark.process
def test_two_processes_end_with_the_files_of_one(pope: Path, tmp_path: Path) -> None:
    words = ["--model", "random:tiny", "--benchmark", f"pope={pope}", "--new-tokens", "3"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        started([*words, "--out", str(tmp_path / "two")], RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in ("0", "1")
    ]  # fmt: skip
    main([*words, "--out", str(tmp_path / "one")])
    assert [process.wait() for process in both] == [0, 0]
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    shares = [path.read_bytes().count(b"\n") for path in sorted((tmp_path / "two" / "parts").iterdir())]
    assert len(shares) == 2 and min(shares) > 0 and sum(shares) == answered(tmp_path / "one")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the photographs in ../shared/data/photos")
def test_pope_style_questions_about_photographs_are_answered_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "pope", tmp_path / "run"
    given = ["--data", str(PHOTOS / "photos.jsonl"), "--images", str(PHOTOS / "images"), "--pictures", "4"]
    main(["make-pope", *given, "--out", str(data)])
    assert "POPE-style questions about 4 pictures" in capsys.readouterr().out
    main(["--model", "random:tiny", "--benchmark", f"pope={data}", "--new-tokens", "2", "--out", str(out)])
    assert "LLaVA-1.5-13B" in capsys.readouterr().out, "published scores stand beside it"
    questions = (data / "llava_pope_test.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in (out / "answers" / "pope.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in answers] == [json.loads(line)["question_id"] for line in questions]
    table = pd.read_csv(out / "results.csv")
    assert (table.loc[0, "metric"], table.loc[0, "n"]) == ("main", len(questions))
