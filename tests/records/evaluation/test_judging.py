"""Judged benchmarks at a scripted server: scores, faults, a kill, and the key."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
        reviews = [json.loads(line) for line in (wild / "answers.kind-judge.reviews.jsonl").read_text().splitlines()]
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
    written = json.loads((vet / "answers.kind-judge.mm-vet-grades.json").read_text())
    assert written["v1_0"] == {"model": ["kind-judge"], "content": ["0.4"], "score": [0.4]}


def long_ones(status: int) -> Callable[[Body, int], Play]:
    """Question 2 is too long for the server; the reply about question 0 cannot be read."""

    def script(body: Body, n: int) -> Play:
        return Play("too long", status=status) if number(body) == 2 else grades(body, n)

    return script


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_answer_that_the_server_rejects_is_not_judged_and_the_others_are(
    status: int, wild: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_server(long_ones(status)) as server:
        score(wild, server.url, "--json")
        assert len(server.asked) == N, "a rejected request is not sent twice"
    found = json.loads(capsys.readouterr().out)
    # Without the questions 0, which cannot be read, and 2: 1 + 3 + 4 + 5 of 4 x 8.
    assert found["score"] == pytest.approx(100 * 13 / 32)
    counted = {(m["name"], m["part"]): (m["value"], m["n"]) for m in found["metrics"]}
    assert counted["relative score", "all"] == (pytest.approx(100 * 13 / 32), N - 2)
    assert counted["not judged", "rejected"] == counted["not judged", "unreadable"] == (1, N)
    assert all(m["rule"] == "graded by kind-judge" for m in found["metrics"])
    (note,) = [note for note in found["notes"] if "rejects" in note]
    assert note.startswith("the judge's server rejects 1 of 6 answers, which are left out: question 2 (")
    assert f"status {status} (too long)" in note
    rows = [json.loads(line) for line in (wild / "answers.kind-judge.reviews.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows if "tuple" not in row] == [0, 2]
    assert f"status {status} (too long)" in rows[2]["not_judged"] and "not_judged" not in rows[0]


def test_a_run_with_a_rejected_answer_ends_and_its_table_counts_it(
    wild: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--model", "random:tiny", "--benchmark", f"llava_wild={wild}", "--new-tokens", "2", "--out", str(out)]
    with scripted_server(long_ones(400)) as server:
        words += ["--judge-url", server.url, "--judge-model", "kind-judge"]
        main(words)
        estimate, _, printed = capsys.readouterr().out.partition("\n")
        main(words)  # only the rejected request is sent again, since the server may have changed
        assert [number(body) for body in server.asked[N:]] == [2]
        again = capsys.readouterr().out.partition("\n")[2]
        assert again.partition("time:")[0] == printed.partition("time:")[0] != estimate
    assert re.search(r"not judged +2", printed) and "question 2 (server must accept the request" in printed
    table = pd.read_csv(out / "results.csv").set_index(["metric", "part"])
    assert table.loc[("not judged", "rejected"), "score"] == 1
    assert (table.loc[("main", "all"), "n"], table.loc[("main", "all"), "rule"]) == (N - 2, "graded by kind-judge")


def test_many_rejected_answers_in_a_row_are_passed_over_and_none_accepted_is_an_error(
    vet: Path, wild: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_server(lambda b, n: grades(b, n) if number(b) == 5 else Play("too long", status=413)) as server:
        score(wild, server.url, "--judge-concurrency", "1")
        assert "rejects 5 of 6 answers" in capsys.readouterr().out
    with scripted_server(lambda body, n: Play("no such field", status=422)) as server:
        with pytest.raises(SystemExit) as end:
            score(vet, server.url, benchmark="mmvet")
        error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert "server must accept the request, got status 422 (no such field)" in error
    assert not list(vet.glob("*grades*"))


def test_a_rejected_answer_of_mmvet_has_no_grade(vet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_server(lambda b, n: Play("1.0") if "Q1?" in str(b) else Play("long", status=400)) as server:
        score(vet, server.url, "--json", benchmark="mmvet")
    assert json.loads(capsys.readouterr().out)["score"] == 100.0
    written = json.loads((vet / "answers.kind-judge.mm-vet-grades.json").read_text())
    assert written["v1_0"]["score"] == [] and "status 400 (long)" in written["v1_0"]["not_judged"]
    assert written["v1_1"] == {"model": ["kind-judge"], "content": ["1.0"], "score": [1.0]}


def test_reviews_lie_in_a_folder_of_their_judge_and_results_name_it(
    wild: Path, vet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--model", "random:tiny", "--new-tokens", "2", "--out", str(out)]
    words += ["--benchmark", f"llava_wild={wild}", "--benchmark", f"mmvet={vet}"]
    write(vet / "images", {f"v1_{i}.png": png() for i in range(2)})

    def script(body: Body, n: int) -> Play:
        if "[Question]" in body["messages"][-1]["content"]:
            return Play("4 8") if body["model"] == "org/second" else grades(body, n)
        return Play(status=403) if body["model"] == "org/second" else Play("0.5")

    with scripted_server(script) as server:
        main([*words, "--judge-url", server.url, "--judge-model", "first"])
        before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
        with pytest.raises(SystemExit):  # the second judge grades one benchmark, and fails at the other
            main([*words, "--judge-url", server.url, "--judge-model", "org/second"])
    capsys.readouterr()
    table = pd.read_csv(out / "results.csv")
    assert set(table["rule"]) == {"graded by first"}
    own = [path for path in before if "reviews" in path.parts]
    assert {path.relative_to(out).parts[:3] for path in own if path.suffix} >= {
        ("reviews", "first", "llava_wild"), ("reviews", "first", "mmvet")
    }  # fmt: skip
    assert all(path.read_bytes() == before[path] for path in own), "the reviews of the first judge are as they were"


def test_replies_that_cannot_be_read_give_no_score(wild: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_server(lambda body, n: Play("-1")) as server:
        score(wild, server.url, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["score"] is None
    assert [(m["name"], m["part"], m["value"]) for m in found["metrics"]] == [("not judged", "unreadable", 6)]
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
        assert not (wild / "answers.kind-judge.reviews.jsonl").exists()
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
    assert len((out / "reviews" / "kind-judge" / "llava_wild" / "reviews.jsonl").read_text().splitlines()) == N
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
