"""Judged benchmarks at a scripted server: scores, faults, a kill, and the key."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from records.evaluation import run as evaluation
from records.evaluation.cli import main
from tests.scripted_server import Body, Play, scripted_server
from tests.tasks.benchmarks.bundle import png, write

KEY = "sk-0123456789abcdefghijklmnopqrstuvwxyz"
N = 6


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    """LLaVA-Bench's files with six questions, and answers of a model."""
    rows = [
        {"question_id": i, "image": f"{i}.png", "text": f"Q{i}?", "category": "conv" if i % 2 else "detail"}
        for i in range(N)
    ]
    return write(
        tmp_path / "wild",
        {
            "questions.jsonl": rows,
            "context.jsonl": [{"id": i, "image": f"{i}.png", "caption": "A hill."} for i in range(N)],
            "answers_gpt4.jsonl": [{"question_id": i, "text": f"R{i}", "answer_id": f"r{i}"} for i in range(N)],
            "answers.jsonl": [{"question_id": i, "text": f"A{i}", "answer_id": f"a{i}"} for i in range(N)],
            **{f"images/{i}.png": png() for i in range(N)},
        },
    )


@pytest.fixture
def vet(tmp_path: Path) -> Path:
    """MM-Vet's files with two questions, and answers of a model."""
    rows = [{"image": f"v1_{i}.png", "text": f"Q{i}?", "category": "conv", "question_id": i} for i in range(2)]
    labels = {f"v1_{i}": {"answer": "4", "capability": [kind]} for i, kind in enumerate(("ocr", "math"))}
    answers = [{"question_id": i, "text": f"A{i}"} for i in range(2)]
    return write(tmp_path / "vet", {"llava-mm-vet.jsonl": rows, "mm-vet.json": labels, "answers.jsonl": answers})


def number(body: Body) -> int:
    """The number of the question that a prompt is about."""
    found = re.search(r"\[Question\]\nQ(\d)\?", body["messages"][-1]["content"])
    assert found is not None
    return int(found[1])


def grades(body: Body, n: int) -> Play:
    """``8 i`` for question i; that of question 0 cannot be read."""
    i = number(body)
    return Play(f"8 {i}\nbecause" if i else "Both are good.")


def score(folder: Path, url: str, *words: str, benchmark: str = "llava_wild", model: str = "kind-judge") -> None:
    given = ["--answers", str(folder / "answers.jsonl"), "--questions", str(folder)]
    main(["score", benchmark, *given, "--judge-url", url, "--judge-model", model, *words])


def contents(folder: Path) -> bytes:
    """All that is written below a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_judge_scores_answers_and_is_asked_once(wild: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_server(grades) as server:
        score(wild, server.url, "--json", "--judge-concurrency", "2")
        found = json.loads(capsys.readouterr().out)
        assert server.most_at_once <= 2 and len(server.asked) == N
        assert server.asked[0]["messages"][0]["role"] == "system"
        # The reply about question 0 cannot be read, so the sums are those of 1 to 5.
        assert found["score"] == pytest.approx(100 * 15 / 40)
        assert found["metrics"][0]["rule"] == "graded by kind-judge" and found["metrics"][0]["n"] == N - 1
        assert any("not comparable with figures of another judge" in note for note in found["notes"])
        assert "1 of 6 replies of the judge cannot be read and are left out" in found["notes"]
        reviews = [json.loads(line) for line in (wild / "answers.reviews.jsonl").read_text().splitlines()]
        assert [row.get("tuple") for row in reviews] == [None, *([8.0, float(i)] for i in range(1, N))]
        assert [row["answer2_id"] for row in reviews] == [f"a{i}" for i in range(N)]
        log = wild / "answers.judge.jsonl"
        assert len(log.read_text().splitlines()) == N
        score(wild, server.url, "--json")
        assert json.loads(capsys.readouterr().out) == found and len(server.asked) == N, "all replies are in the log"
        score(wild, server.url, model="other-judge")
        assert len(server.asked) == 2 * N, "the model is part of the key"
        assert "graded by other-judge" in capsys.readouterr().out
        score(wild, server.url, "--judge-log", str(wild / "fresh" / "log.jsonl"))
        assert len(server.asked) == 3 * N and (wild / "fresh" / "log.jsonl").is_file()


def test_mmvet_is_graded(vet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_server(lambda body, n: Play("0.4" if "Q0?" in body["messages"][-1]["content"] else "1.0")) as server:
        score(vet, server.url, "--json", benchmark="mmvet")
    found = json.loads(capsys.readouterr().out)
    assert {m["part"]: round(m["value"], 6) for m in found["metrics"]} == {"all": 70.0, "ocr": 40.0, "math": 100.0}
    written = json.loads((vet / "answers.mm-vet-grades.json").read_text())
    assert written["v1_0"] == {"model": ["kind-judge"], "content": ["0.4"], "score": [0.4]}


def test_replies_that_cannot_be_read_give_no_score(wild: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_server(lambda body, n: Play("-1")) as server:
        score(wild, server.url, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["score"] is None and found["metrics"] == []
    assert "6 of 6 replies of the judge cannot be read and are left out" in found["notes"]


@pytest.mark.process
def test_nothing_is_asked_twice_after_a_kill_and_the_key_is_written_nowhere(
    wild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(body: Body, n: int) -> Play:
        if n == 3:  # the fourth request hangs until the kill
            return Play("8 9", slow=1.5)
        return Play(f"{KEY} echoed" if number(body) == 0 else grades(body, n).text)

    monkeypatch.setenv("JUDGE_KEY", KEY)
    words = ["--judge-key-env", "JUDGE_KEY", "--judge-concurrency", "1"]
    with scripted_server(script) as server:
        command = [
            sys.executable, "-m", "records.evaluation.cli", "score", "llava_wild", "--answers",
            str(wild / "answers.jsonl"), "--questions", str(wild), "--judge-url", server.url, "--judge-model",
            "kind-judge", *words,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        with (tmp_path / "printed").open("wb") as printed:
            process = subprocess.Popen(command, stdout=printed, stderr=printed, env=environment)
            while len(server.asked) < 4 and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert not (wild / "answers.reviews.jsonl").exists()
        first = [number(body) for body in server.asked]
        score(wild, server.url, *words)
        again = [number(body) for body in server.asked[4:]]
        assert sorted([*first[:3], *again]) == list(range(N)), "three replies were logged"
        assert all(headers["authorization"] == f"Bearer {KEY}" for headers in server.headers)
    written = capsys.readouterr()
    everything = contents(tmp_path) + (written.out + written.err).encode()
    assert KEY.encode() not in everything and b"[key] echoed" in everything


def test_benchmark_eval_keeps_answers_when_the_judge_fails(
    wild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "run"
    words = ["--model", "random:tiny", "--benchmark", f"llava_wild={wild}", "--new-tokens", "2", "--out", str(out)]

    def closed(body: Body, n: int) -> Play:
        return Play(status=401) if n < 2 else grades(body, n)

    with scripted_server(closed) as server:
        judge = ["--judge-url", server.url, "--judge-model", "kind-judge", "--judge-concurrency", "2"]
        with pytest.raises(SystemExit) as end:
            main([*words, *judge])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1
        assert "OPENAI_API_KEY must hold a key for this server, got status 401: it is not set" in error
        assert not (out / "results.csv").exists() and not (out / "reviews").exists()
        left: list[int] = []
        monkeypatch.setattr(
            evaluation, "answer_questions", lambda llava, asked, indices, **_: left.extend(indices) or iter(())
        )
        main([*words, *judge])
        capsys.readouterr()
        asked = len(server.asked)
        main([*words, *judge])  # a finished run: the same table, nothing asked
        assert len(server.asked) == asked
    assert left == [], "the model is not asked again"
    table = pd.read_csv(out / "results.csv")
    row = table.iloc[0]
    assert (row["metric"], row["rule"], row["n"]) == ("main", "graded by kind-judge", N - 1)
    assert row["score"] == pytest.approx(100 * 15 / 40)
    assert len((out / "reviews" / "llava_wild" / "reviews.jsonl").read_text().splitlines()) == N
    assert "graded by kind-judge" in capsys.readouterr().out
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--judge-url", "URL"], "judge-model must go with judge-url, got only one"),
        (["--judge-model", "m"], "judge-url must go with judge-model, got only one"),
        (["--judge-prices", "prices.yaml"], "judge-prices must go with judge-url and judge-model, got neither"),
        (["--judge-log", "log.jsonl"], "judge-log must go with judge-url and judge-model, got neither"),
        (["--judge-url", "ftp://x", "--judge-model", "m"], "judge-url must be an http address"),
        (["--judge-url", "http://me:secret@h/v1", "--judge-model", "m"], "judge-url must hold no user name"),
        (
            ["--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m", "--judge-attempts", "1"],
            "judge-url must be the address of a running server, got no connection",
        ),
        (["--judge-url", "URL", "--judge-model", "m", "--judge-concurrency", "0"], "judge-concurrency must be >= 1"),
        (["--judge-url", "URL", "--judge-model", "m", "--judge-timeout", "0"], "judge-timeout must be > 0"),
        (["--judge-url", "URL", "--judge-model", "m", "--judge-key-env", "a b"], "judge-key-env must be the name"),
        (["--judge-url", "URL", "--judge-model", "m", "--judge-max-cost", "1"], "Give --judge-prices"),
        (
            ["--judge-url", "URL", "--judge-model", "m", "--judge-prices", "prices.yaml", "--judge-max-cost", "0.0001"],
            "judge-max-cost must leave room for the next request",
        ),
        (["--judge-url", "URL", "--judge-model", "other", "--judge-prices", "prices.yaml"], "judge-prices must have"),
    ],
)  # fmt: skip
def test_bad_input_of_a_judge_is_one_sentence(
    words: list[str], said: str, wild: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(wild)
    Path("prices.yaml").write_text("m: {prompt: 10, completion: 100}")
    given = ["score", "llava_wild", "--answers", "answers.jsonl", "--questions", "."]
    with scripted_server(grades) as server:
        with pytest.raises(SystemExit) as end:
            main([*given, *(word.replace("URL", server.url) for word in words)])
        error = capsys.readouterr().err
        assert end.value.code == 2 and said in error
        assert error.count("\n") == 1 and not list(wild.glob("*reviews*"))
        assert not server.asked


def test_a_judge_needs_something_to_grade(wild: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question_id": 1, "image": "0.png", "text": "Is there a cat?", "category": "random"}]
    pope = write(wild.parent / "pope", {"llava_pope_test.jsonl": rows, "answers.jsonl": [{**rows[0], "text": "yes"}]})
    with pytest.raises(SystemExit):
        score(pope, "http://127.0.0.1:9/v1", benchmark="pope")
    assert "judge-url must go with a benchmark that a judge grades, got none" in capsys.readouterr().err
    (wild / "answers_gpt4.jsonl").unlink()
    with scripted_server(grades) as server:
        score(wild, server.url)
        assert not server.asked
    assert "needs context.jsonl and answers_gpt4.jsonl beside it, and a judge" in capsys.readouterr().out
