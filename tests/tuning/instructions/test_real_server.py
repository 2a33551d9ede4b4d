"""``generate-instructions`` against ``transformers serve`` with SmolLM2: protocol, resume, limits, refusals, samples.

SmolLM2 writes poor text: about the dog it repeats itself up to the limit of tokens, about the cat it writes a sentence.
"""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedTokenizerFast

from models.loading.smol import compose
from tests.tuning.outcome import Run, outcome_of
from tuning.instructions.cli import main

SERVER = ("fastapi", "uvicorn", "openai")  # what the extra [server] adds
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # SmolLM2's template, for chats that begin with a system message
LONGEST = 24  # tokens of a reply


class RealServer(NamedTuple):
    """The base address, and the folder that the server is started with, which is the model's name there."""

    url: str
    model: str


def write_language_model(folder: Path) -> None:
    """SmolLM2 as ``smol-stage1`` holds it, unchanged, with its chat template: `serve` finds no class in a GGUF file."""
    stage1, part = compose("smol-stage1"), "language_model."
    state = load_file(stage1 / "model.safetensors")
    words = {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
    save_file(words, folder / "model.safetensors", metadata={"format": "pt"})
    config: Any = AutoConfig.from_pretrained(stage1).text_config
    config.architectures, config.tie_word_embeddings = ["LlamaForCausalLM"], True
    config.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(stage1 / "tokenizer.json"), eos_token="<|im_end|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """``transformers serve`` on a loopback port."""
    missing = [name for name in SERVER if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra [server] is not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("smollm2")
    write_language_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "server.log"
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(folder), "--device", "cpu", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        _wait_for(process, f"http://127.0.0.1:{port}/health", log)
        yield RealServer(f"http://127.0.0.1:{port}/v1", str(folder))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(1000):  # the timeout of the test ends it earlier
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            if opener.open(url, timeout=5).status == 200:
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


@pytest.fixture
def words(server: RealServer, tmp_path: Path) -> list[str]:
    """The options of all runs: descriptions of a dog and a cat, greedy, a dollar for each token of a reply."""
    rows = [
        {"id": noun, "image": f"{noun}.png", "width": 40, "height": 30,
         "captions": [f"There is a {noun} here.", f"A {noun} in the middle of a plain background."],
         "objects": [{"name": noun, "box": [5, 5, 30, 25]}]}
        for noun in ("dog", "cat")
    ]  # fmt: skip
    (tmp_path / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prompts = tmp_path / "prompts" / "detail_description"
    prompts.mkdir(parents=True)
    (prompts / "system_message.txt").write_text("You describe pictures in one short sentence.")
    price = {"prompt": 0, "completion": 1_000_000}
    (tmp_path / "prices.yaml").write_text(json.dumps({server.model: price, "other": price}))
    given = ["--captions", tmp_path / "photos.jsonl", "--prompts", prompts.parent, "--shares", "0:1:0"]
    given += ["--model", server.model, "--url", server.url, "--prices", tmp_path / "prices.yaml"]
    given += ["--temperature", 0, "--max-tokens", LONGEST, "--concurrency", 1, "--timeout", 600, "--attempts", 1]
    return list(map(str, given))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return lambda words, out="made": outcome_of(main, words, tmp_path / out, capsys)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


@pytest.mark.process
@pytest.mark.smol
def test_a_real_server_is_asked_once_also_after_a_kill_and_a_limit_and_its_sentence_becomes_a_sample(
    server: RealServer, words: list[str], run: Run, tmp_path: Path
) -> None:
    text = [*words, "--reply-format", "text"]
    dry = run([*text, "--dry-run", "--tokenizer", server.model]).out
    counted = int(dry.split("requests: ")[1].split(" prompt")[0].replace(",", ""))
    made, requests = tmp_path / "made", tmp_path / "made" / "requests.jsonl"
    command = [sys.executable, "-m", "tuning.instructions.cli", *text, "--out", str(made)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (requests.exists() and requests.read_bytes().endswith(b"\n")):
        time.sleep(0.02)
    process.kill()  # with one request answered and the other under way
    process.wait()
    first = requests.read_bytes()
    (answered,) = log_of(made)
    assert answered["cost"] == answered["completion_tokens"] > 0
    stopped = run([*text, "--max-cost", answered["cost"] + LONGEST - 1])
    assert stopped.code == 2 and "max-cost" in stopped.err and stopped.err.count("\n") == 1
    assert requests.read_bytes() == first and not (made / "instructions.json").exists()
    done = run([*text, "--max-cost", answered["cost"] + LONGEST])
    assert done.code == 0, done.err
    assert requests.read_bytes().startswith(first)
    log = log_of(made)
    assert [row["status"] for row in log] == ["answered"] * 2
    assert sum(row["prompt_tokens"] for row in log) == counted
    assert {row["tag"]: row["finish"] for row in log} == {"dog-detail": "length", "cat-detail": "stop"}
    assert all(row["completion_tokens"] == LONGEST for row in log if row["finish"] == "length")
    (sample,) = json.loads((made / "instructions.json").read_text())
    assert sample["image"] == "cat.png" and "cat" in sample["conversations"][1]["value"]
    assert sample["conversations"][1]["value"] == next(row["text"] for row in log if row["finish"] == "stop").strip()
    refused = pd.read_csv(made / "refused.csv")
    assert refused[["id", "reason"]].to_numpy().tolist() == [["dog-detail", "cut at the limit of tokens"]]
    before = (made / "instructions.json").read_bytes()
    for name in ("instructions.json", "results.parquet"):
        (made / name).unlink()
    assert run(text).code == 0
    assert (made / "instructions.json").read_bytes() == before
    assert len(log_of(made)) == 2


@pytest.mark.process
@pytest.mark.smol
def test_a_server_that_ignores_schemas_is_named_and_so_is_another_model(
    server: RealServer, words: list[str], run: Run
) -> None:
    done = run([*words, "--samples", "1"])  # JSON is the default
    assert done.code == 0, done.err
    (asked,) = log_of(done.folder)
    assert asked["status"] == "answered" and not asked["text"].startswith("{")
    assert json.loads((done.folder / "instructions.json").read_text()) == []
    assert pd.read_csv(done.folder / "refused.csv")["reason"].tolist() == ["the reply is not JSON"]
    assert "--reply-format text" in done.out
    other = run(["other" if word == server.model else word for word in words], out="no")
    assert other.code == 2 and "Server is pinned to" in other.err and other.err.count("\n") == 1
    assert not (other.folder / "instructions.json").exists()
