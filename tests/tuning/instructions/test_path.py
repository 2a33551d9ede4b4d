"""The path of docs/data.md at small size: generate, mix, train, score; and a real server."""

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
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file

from models.loading.smol import language_model_file, load_language_model
from tests.scripted_server import scripted_server
from tests.tuning.instructions.test_generate import NOUNS, good
from tuning.cli import main as tune
from tuning.instructions.cli import main as generate

SERVER = ("fastapi", "uvicorn", "openai")  # what the extra [server] adds


def write_pictures(folder: Path, n: int) -> Path:
    """Captions and boxes of n pictures, and the pictures."""
    rows = []
    for i, noun in enumerate(NOUNS[:n]):
        Image.new("RGB", (40, 30), (20 * i, 90, 90)).save(folder / f"{i}.png")
        objects = [{"name": noun, "box": [5, 5, 30, 25]}]
        captions = [f"There is a {noun} here.", f"A {noun} in the middle of a plain background."]
        rows.append(
            {"id": str(i), "image": f"{i}.png", "width": 40, "height": 30, "captions": captions, "objects": objects}
        )
    (folder / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "photos.jsonl"


def test_generated_data_are_mixed_trained_on_and_scored(base: Path, tmp_path: Path) -> None:
    captions = write_pictures(tmp_path, 8)
    questions = [
        {"image": f"{i}.png", "question": "Is there a dog?", "answer": "yes" if i == 0 else "no"} for i in range(8)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    made, mixed, tuned = (tmp_path / name for name in ("made", "mixed", "tuned"))
    with scripted_server(good) as server:
        generate(["--captions", str(captions), "--model", "m", "--url", server.url, "--out", str(made)])
    parts = [f"llava={made / 'instructions.json'}", f"vqav2={tmp_path / 'questions.jsonl'},join=no"]
    tune(
        ["mix", *(word for part in parts for word in ("--part", part)), "--images", str(tmp_path), "--out", str(mixed)]
    )
    assert pd.read_csv(mixed / "results.csv")["samples"].tolist() == [8, 8, 16]
    common = ["--model", str(base), "--images", str(tmp_path), "--max-length", "600", "--batch-size", "4"]
    options = ["--layers", "1-2", "--steps", "4", "--lr", "1e-3", "--eval-data", str(tmp_path / "questions.jsonl")]
    tune(["--data", str(mixed / "mix.json"), *common, *options, "--eval-every", "2", "--out", str(tuned)])
    scored = pd.read_csv(tuned / "evaluations.csv")
    assert set(scored["n"]) == {8}
    losses = [json.loads(line)["loss"] for line in (tuned / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(losses) >= 1 and all(0 < loss < 20 for loss in losses)
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (base, tuned))
    changed = {name for name in after if not before[name].equal(after[name])}
    assert changed and all(".layers.1." in name or ".layers.2." in name or "projector" in name for name in changed)


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``transformers serve`` with SmolLM2 on a loopback port."""
    missing = [name for name in SERVER if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra [server] is not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("smollm2")  # serve 5.23 finds no architecture in the GGUF file itself
    language = load_language_model()
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "server.log"
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(folder), "--device", "cpu", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"}, start_new_session=True
        )
    try:
        _wait_for(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            if opener.open(url, timeout=5).status == 200:
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


@pytest.mark.process
@pytest.mark.smol
def test_a_real_server_is_asked_once_also_after_a_kill_and_its_tokens_are_those_of_the_dry_run(
    real_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SmolLM2 writes poor text; the protocol, the counts, the resume and one valid sample are what is tested."""
    from transformers import AutoTokenizer

    weights = language_model_file()
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(tmp_path / "tokenizer")
    captions = write_pictures(tmp_path, 2)
    prompts = tmp_path / "prompts" / "detail_description"
    prompts.mkdir(parents=True)
    (prompts / "system_message.txt").write_text("You describe pictures in one short sentence.")
    given: list[Any] = ["--captions", captions, "--model", "smollm2", "--url", real_server, "--prompts", prompts.parent]
    given += ["--shares", "0:1:0", "--reply-format", "text", "--temperature", 0, "--max-tokens", 96, "--timeout", 240]
    given += ["--out", tmp_path / "made"]
    words = list(map(str, given))
    generate([*words, "--dry-run", "--tokenizer", str(tmp_path / "tokenizer")])
    counted = int(capsys.readouterr().out.split("requests: ")[1].split(" prompt")[0].replace(",", ""))
    requests = tmp_path / "made" / "requests.jsonl"
    command = [sys.executable, "-m", "tuning.instructions.cli", *words, "--concurrency", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (requests.exists() and requests.read_bytes().endswith(b"\n")):
        time.sleep(0.05)
    process.kill()  # with one request answered and the other under way
    process.wait()
    first = requests.read_bytes()
    generate(words)
    assert requests.read_bytes().startswith(first)
    log = [json.loads(line) for line in requests.read_text().splitlines()]
    assert [row["status"] for row in log] == ["answered"] * 2
    assert sum(row["prompt_tokens"] for row in log) == counted
    assert all(0 < row["completion_tokens"] <= 96 and row["finish"] in ("stop", "length") for row in log)
    samples = json.loads((tmp_path / "made" / "instructions.json").read_text())
    refused = pd.read_csv(tmp_path / "made" / "refused.csv")
    assert len(samples) + len(refused) == 2
    texts = {row["text"].strip() for row in log}
    assert {sample["conversations"][1]["value"] for sample in samples} | set(refused["reply"].str.strip()) == texts
    before = (tmp_path / "made" / "instructions.json").read_bytes()
    for name in ("instructions.json", "results.parquet"):
        (tmp_path / "made" / name).unlink()
    generate(words)
    assert (tmp_path / "made" / "instructions.json").read_bytes() == before
    assert len(requests.read_text().splitlines()) == 2
