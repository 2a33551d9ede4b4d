"""``generate-instructions`` against a scripted server: samples, refusals, costs, resume after SIGKILL, bad input."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from tests.scripted_server import Body, Play, scripted_server
from tests.tuning.outcome import Outcome, Run, outcome_of
from tuning.data.llava_json import LlavaFile
from tuning.instructions.cli import main

N = 12
NOUNS = ("dog", "cat", "bus", "bench", "kite", "boat", "horse", "clock", "cup", "sofa", "lamp", "tree")


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Twelve pictures with one object each."""
    box = [10, 10, 50, 50]
    rows = [
        {"id": str(i), "image": f"{i}.png", "width": 100, "height": 100, "captions": [f"There is a {noun} here."],
         "objects": [{"name": noun, "box": box}]}
        for i, noun in enumerate(NOUNS)
    ]  # fmt: skip
    path = tmp_path / "photos.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def run(captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on the twelve pictures."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call(*arguments: object, out: str = "run") -> Outcome:
        given = list(arguments)
        if "--captions" not in given:
            given += ["--captions", captions]
        if "--model" not in given:
            given += ["--model", "m"]
        return outcome_of(main, given, tmp_path / out, capsys)

    return call


def noun_of(body: Body) -> str:
    """The object of the picture that is asked about."""
    return str(body["messages"][-1]["content"].split("There is a ")[1].split(" here")[0])


def kind_of(body: Body) -> str:
    system = body["messages"][0]["content"]
    return "conversation" if "chat" in system else "detail" if "describe one" in system else "reasoning"


def turns_about(noun: str, kind: str) -> list[tuple[str, str]]:
    first = (
        f"Why would somebody photograph the {noun}?",
        f"The {noun} is the {noun}-like centre of all {noun} things.",
    )
    return [first, (f"Where is the {noun}?", f"The {noun} is on the left.")] if kind == "conversation" else [first]


def good(body: Body, n: int = 0) -> Play:
    """A valid reply in the format that is asked for."""
    noun, kind = noun_of(body), kind_of(body)
    turns = turns_about(noun, kind)
    if "response_format" not in body:
        blocks = [f"{name}:\n{text}" for turn in turns for name, text in zip(("Question", "Answer"), turn, strict=True)]
        return Play(f"A large {noun} beside another {noun}." if kind == "detail" else "\n===\n".join(blocks))
    if kind == "detail":
        return Play(json.dumps({"description": f"A large {noun} beside another {noun}."}))
    return Play(json.dumps({"turns": [{"question": q, "answer": a} for q, a in turns]}))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ["json", "text"])
def test_valid_replies_become_a_file_that_training_reads(
    form: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with scripted_server(good) as server:
        done = run("--url", server.url, "--reply-format", form, "--seed", 3, "--temperature", 0.5, "--max-tokens", 99)
    assert (done.code, done.err) == (0, "")
    assert len(server.asked) == N
    assert {(b["model"], b["seed"], b["temperature"], b["max_tokens"]) for b in server.asked} == {("m", 3, 0.5, 99)}
    assert all(("response_format" in body) == (form == "json") for body in server.asked)
    results = pd.read_csv(done.folder / "results.csv").set_index("kind")
    assert results["samples"].to_dict() == {"conversation": 4, "detail": 2, "reasoning": 6, "all": N}  # 58:23:77
    assert results["turns"].to_dict() == {"conversation": 8, "detail": 2, "reasoning": 6, "all": 16}
    assert results.loc["all", ["prompt_tokens", "completion_tokens", "attempts"]].tolist() == [100 * N, 10 * N, N]
    samples = json.loads((done.folder / "instructions.json").read_text())
    for sample in samples:
        name, _, kind = sample["id"].partition("-")
        assert sample["image"] == f"{name}.png"
        assert NOUNS[int(name)] in sample["conversations"][1]["value"]
        assert len(sample["conversations"]) == (4 if kind == "conversation" else 2)
    for i in range(N):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    source = LlavaFile(done.folder / "instructions.json", tmp_path)
    assert [len(source[i].pictures) for i in range(len(source))] == [1] * N
    assert "data:" in done.out and f"({N} samples)" in done.out
    main(["show", str(done.folder)])
    assert capsys.readouterr().out == done.out.partition("\n")[2]  # after the estimate


def test_the_same_seed_and_log_give_the_same_file_and_another_seed_another(run: Run) -> None:
    with scripted_server(good) as server:
        first = run("--url", server.url, "--concurrency", 1)
        again = run("--url", server.url, "--concurrency", 5, out="again")
        n_asked = len(server.asked)
        other = run("--url", server.url, "--seed", 1, out="other")
    texts = [(done.folder / "instructions.json").read_bytes() for done in (first, again, other)]
    assert (texts[0] == texts[1], texts[0] == texts[2]) == (True, False)
    assert n_asked == 2 * N
    done = run("--url", "http://127.0.0.1:9/v1")  # a finished run asks nothing
    assert done.code == 0
    (first.folder / "results.parquet").unlink()
    (first.folder / "instructions.json").unlink()
    done = run("--url", "http://127.0.0.1:9/v1")  # all replies are in the log
    assert (done.code, (first.folder / "instructions.json").read_bytes() == texts[0]) == (0, True)


def test_refusals_and_near_duplicates_are_counted_and_listed(run: Run) -> None:
    bad = {
        "dog": Play("no JSON"),
        "cat": Play(json.dumps({"turns": [{"question": "Why is there a bus?", "answer": "It waits."}]})),
        "bus": Play(json.dumps({"turns": [{"question": "Why?", "answer": "The caption says so."}]})),
        "bench": Play("too long", status=400),
        "kite": Play('{"turns": [', finish="length"),
        "boat": Play(json.dumps({"turns": [{"question": "Why now, and why here?", "answer": "It is time to go."}]})),
        "horse": Play(json.dumps({"turns": [{"question": "Why now, and why here?", "answer": "It is time to go!"}]})),
    }
    with scripted_server(lambda body, n: bad.get(noun_of(body)) or good(body)) as server:
        done = run("--url", server.url, "--shares", "0:0:1")
    assert done.code == 0
    refused = pd.read_csv(done.folder / "refused.csv").set_index("id")["reason"].to_dict()
    twins = {"5-reasoning", "6-reasoning"}
    (copy,) = twins & set(refused)
    (original,) = twins - {copy}
    assert refused.pop(copy) == f"near duplicate of {original}"
    assert refused.pop("3-reasoning").startswith("rejected: server must accept the request, got status 400 (too long)")
    assert refused == {
        "0-reasoning": "the reply is not JSON",
        "1-reasoning": "asks about what is not there (bus)",
        "2-reasoning": "names its source (caption)",
        "4-reasoning": "cut at the limit of tokens",
    }
    total = pd.read_csv(done.folder / "results.csv").set_index("kind").loc["all"]
    assert (total["asked"], total["samples"], total["refused"], total["duplicates"]) == (N, N - 6, 5, 1)
    assert len(json.loads((done.folder / "instructions.json").read_text())) == N - 6


def test_other_rules_need_no_new_replies_if_runs_share_a_log(run: Run, tmp_path: Path) -> None:
    with scripted_server(good) as server:
        shared = ("--url", server.url, "--shares", "1:0:0", "--samples", 6, "--log", tmp_path / "shared" / "log.jsonl")
        done = run(*shared, "--duplicates", 0.05)
        assert pd.read_csv(done.folder / "results.csv").iloc[-1]["duplicates"] == 5
        done = run(*shared, "--fewest-turns", 3, out="b")
        assert set(pd.read_csv(done.folder / "refused.csv")["reason"]) == {"wrong number of turns (2)"}
        done = run(*shared, "--fewest-turns", 1, "--most-turns", 1, out="c")
        assert len(server.asked) == 6  # the runs share one log
        assert json.loads((done.folder / "instructions.json").read_text()) == []


def test_prompts_of_the_user_are_sent(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "prompts" / "complex_reasoning"
    folder.mkdir(parents=True)
    (folder / "system_message.txt").write_text("Think of a hard question.")
    with scripted_server(good) as server:
        run("--url", server.url, "--shares", "0:0:1", "--prompts", tmp_path / "prompts", "--samples", 1)
    assert server.asked[0]["messages"][0]["content"].startswith("Think of a hard question.\n\nReply with a JSON object")
    assert len(server.asked[0]["messages"]) == 2


def test_a_dry_run_counts_requests_tokens_and_costs_and_asks_nothing(run: Run, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("m: {prompt: 1000, completion: 10000}")
    with scripted_server(good) as server:
        done = run("--url", server.url, "--prices", prices, "--max-tokens", 10, "--dry-run")
        assert server.asked == []
    assert done.out.startswith("12 requests: about ")
    prompt = int(done.out.split("about ")[1].split(" prompt")[0].replace(",", ""))
    assert f"at most 120 tokens of replies, at most ${prompt / 1000 + 1.2:.2f}" in done.out
    assert not done.folder.exists()


def _tokenizer(folder: Path, name: str) -> None:
    """A tokenizer of three words whose file or chat template is broken."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, "[UNK]"))
    own = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    own.chat_template = "{{ messages[0]['content'] }}"
    own.save_pretrained(folder)
    if name == "none":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    elif name in ("{}", "[]", "{"):
        (folder / "tokenizer.json").write_text(name)
    elif name == "whole":
        assert (folder / "chat_template.jinja").is_file()
    else:
        (folder / "chat_template.jinja").write_text(name)


TEMPLATES = ["{}", "[]", "{", "none", "{% if %}", "{{ raise_exception('no system') }}", "{{ 1 / 0 }}", "{{ a.b.c }}"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_broken_tokenizer_is_one_sentence(name: str, run: Run, tmp_path: Path) -> None:
    _tokenizer(tmp_path / "tokenizer", name)
    done = run("--dry-run", "--tokenizer", tmp_path / "tokenizer")
    assert (done.code, done.out, done.err.count("\n"), len(done.err) < 450) == (2, "", 1, True)
    assert "tokenizer" in done.err
    _tokenizer(tmp_path / "whole", "whole")
    assert "12 requests: 12 prompt tokens" in run("--dry-run", "--tokenizer", tmp_path / "whole").out


def test_keys_that_are_not_read_are_said_before_anything_is_asked(run: Run, captions: Path) -> None:
    captions.write_text("\n".join(json.dumps({**row, "source": "a"}) for row in rows(captions)))
    assert run("--dry-run").out.startswith("not read: source (12)\n12 requests")


def test_a_limit_of_costs_stops_and_a_higher_one_goes_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("m: {prompt: 1, completion: 1000}")  # 100 + 10 tokens cost $0.0101
    with scripted_server(good) as server:
        options = ("--url", server.url, "--prices", tmp_path / "p.yaml", "--max-tokens", 10, "--max-cost")
        done = run(*options, 0.06)
        assert (done.code, done.out.count("data:"), done.err.count("\n")) == (2, 0, 1)
        assert "max-cost must leave room for the next request" in done.err
        n_asked = len(server.asked)
        assert 0 < n_asked < N
        assert not (done.folder / "instructions.json").exists()
        done = run(*options, 1)
    assert (done.code, len(server.asked)) == (0, N)
    assert pd.read_csv(done.folder / "results.csv").iloc[-1]["cost"] == pytest.approx(0.0101 * N)


def test_requests_that_fail_stop_the_run_unless_they_may_be_left_out(run: Run) -> None:
    def script(body: Body, n: int) -> Play:
        return Play(status=500) if noun_of(body) == "dog" else good(body)

    with scripted_server(script) as server:
        options = ("--url", server.url, "--attempts", 1)
        done = run(*options)
        assert (done.code, "got 1 of 12 without a reply" in done.err, done.err.count("\n")) == (2, True, 1)
        assert not (done.folder / "instructions.json").exists()
        done = run(*options, "--skip-bad")
        assert len(server.asked) == N + 1
    assert len(json.loads((done.folder / "instructions.json").read_text())) == N - 1
    assert pd.read_csv(done.folder / "refused.csv")["reason"][0].startswith(
        "failed: server must answer, got status 500"
    )


def test_bad_pictures_are_left_out_and_listed_if_asked(run: Run, captions: Path) -> None:
    captions.write_text(captions.read_text() + '\n{"id": "bad", "image": "x.png", "captions": []}')
    with scripted_server(good) as server:
        assert "captions must be a list of texts" in run("--url", server.url).err
        done = run("--url", server.url, "--skip-bad")
    assert done.code == 0
    assert "line 13 of photos.jsonl" in (done.folder / "skipped.csv").read_text()
    assert pd.read_csv(done.folder / "results.csv").iloc[-1]["skipped_pictures"] == 1


@pytest.mark.process
def test_after_a_kill_no_answered_request_is_sent_again_and_the_file_is_the_same(run: Run, captions: Path) -> None:
    slow = threading.Event()

    def script(body: Body, n: int) -> Play:
        return good(body) if n < 5 or slow.is_set() else Play(slow=60.0)

    with scripted_server(script) as server:
        out = captions.parent / "killed"
        command = [sys.executable, "-m", "tuning.instructions.cli", "--captions", captions, "--model", "m", "--url"]
        command += [server.url, "--out", out, "--concurrency", "2"]
        environment = {**os.environ, "OPENAI_API_KEY": "sk-secret-secret"}
        process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)
        log = out / "requests.jsonl"
        while process.poll() is None and not (log.exists() and len(log.read_bytes().splitlines()) == 5):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert process.stderr is not None
        process.stderr.close()
        assert not (out / "instructions.json").exists()
        answered = {row["key"] for row in rows(log)}
        slow.set()
        n_before = len(server.asked)
        done = run("--url", server.url, out="killed")
        assert done.code == 0
        resumed = server.asked[n_before:]
        assert len(resumed) == N - 5
        assert answered.isdisjoint({row["key"] for row in rows(log)[5:]})
        whole = run("--url", server.url, out="whole")
    for name in ("instructions.json", "refused.csv"):
        assert (out / name).read_bytes() == (whole.folder / name).read_bytes()
    assert all("sk-secret" not in path.read_text(errors="replace") for path in out.rglob("*") if path.is_file())
    assert "Bearer sk-secret-secret" in [headers.get("authorization") for headers in server.headers]


BAD: list[tuple[list[str], str]] = [
    (["--captions", "gone.jsonl"], "existing file"),
    (["--captions", "gone.json"], "captions must be a readable file"),
    (["--model", ""], "model must be the name of a model"),
    (["--url", "localhost"], "url must be an http address"),
    (["--key-env", "sk-secret-0123"], "key-env must be the name of an environment variable"),
    (["--url", "http://127.0.0.1:9/v1", "--attempts", "1"], "url must be the address of a running server"),
    (["--samples", "0"], "samples must be >= 1"),
    (["--samples", "99"], "samples must need at most one reasoning a picture"),
    (["--shares", "1:2"], "shares must be three"),
    (["--prompts", "gone"], "prompts must have the file conversation/system_message.txt"),
    (["--max-tokens", "0"], "max-tokens must be >= 1"),
    (["--temperature", "3"], "temperature must be in"),
    (["--fewest-turns", "0"], "fewest-turns must be >= 1"),
    (["--most-turns", "1"], "most-turns must be >= fewest-turns 2"),
    (["--duplicates", "0"], "duplicates must be in"),
    (["--concurrency", "0"], "concurrency must be >= 1"),
    (["--attempts", "0"], "attempts must be >= 1"),
    (["--timeout", "0"], "timeout must be > 0"),
    (["--max-cost", "1"], "Give --prices"),
    (["--prices", "gone.yaml"], "prices must be a readable YAML file"),
    (["--boxes", "gone.json"], "boxes must come with COCO's"),
    (["--reply-format", "xml"], "reply-format must be one of json, text"),
    (["--seed", "-1"], "seed must be >= 0"),
    (["--timeout", "1e9"], "timeout must be at most 86,400 seconds"),
    (["--dry-run", "--tokenizer", "gone"], "tokenizer must be a folder"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing_that_looks_complete(
    arguments: list[str], said: str, run: Run, tmp_path: Path
) -> None:
    done = run(*arguments)
    assert (done.code, done.out.count("data:"), done.err.count("\n")) == (2, 0, 1)
    assert said in done.err
    assert "secret" not in done.err
    assert not (tmp_path / "run" / "instructions.json").exists()


def test_a_server_that_needs_a_key_and_one_without_schemas(run: Run) -> None:
    with scripted_server(lambda body, n: Play(status=401)) as server:
        done = run("--url", server.url, "--key-env", "NO_SUCH_KEY")
    assert (done.code, "NO_SUCH_KEY must hold a key for this server" in done.err) == (2, True)
    with scripted_server(lambda body, n: Play("unknown field response_format", status=400)) as server:
        done = run("--url", server.url, out="b")
    assert (done.code, "Use --reply-format text." in done.err) == (2, True)
