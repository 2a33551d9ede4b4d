"""Several processes: copies of the model (DDP) and shards of it (FSDP) give what one process gives."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from models.llava import Llava
from models.loading.load import load
from tasks.errors import UserError
from tests.tuning.conftest import LlavaRows, samples_of, turns
from tuning.cli import main
from tuning.config import Optimisation, RunOptions
from tuning.data.scene_mix import SceneMix
from tuning.plan.plan import LayerPlan, Lisa
from tuning.plan.resolve import resolve
from tuning.training.sharding import prepare_fsdp
from tuning.training.train import train

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy",
    "TRANSFORMER_BASED_WRAP", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no",
]  # fmt: skip


def launch(starter: list[str], arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *starter, *arguments],
        cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def losses_of(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("layers", ["1-2", "none"])
def test_two_processes_give_the_losses_of_one(layers: str, base: Path, tmp_path: Path) -> None:
    """With the projector alone, words teach nothing: no process waits for a gradient, and none moves by momentum."""
    assert not samples_of(load(base), SceneMix(8)).pictured.all()
    losses = {}
    for processes, batch in ((1, 4), (2, 2)):
        out = tmp_path / str(processes)
        arguments = [
            "--model", str(base), "--layers", layers, "--scenes", "8", "--steps", "4", "--batch-size", str(batch),
            "--loss-mean", "token", "--lr", "0.01", "--projector-lr", "0.01", "--log-every", "1", "--max-length", "500",
            "--out", str(out), "--eval-data", "scenes", "--eval-limit", "2",
        ]  # fmt: skip
        if processes == 1:
            main(arguments)
        else:
            done = launch([*TORCHRUN, "-m", "tuning.cli"], arguments)
            assert done.returncode == 0, done.stderr
        losses[processes] = losses_of(out)
        assert load(out).n_layers == 3
    assert len(losses[1]) == 4
    assert losses[1] == pytest.approx(losses[2], abs=2e-4)  # sums in another order, then through AdamW
    one, two = (pd.read_csv(tmp_path / str(processes) / "evaluations.csv") for processes in (1, 2))
    assert len(one) == 16 and set(one["step"]) == {4}
    pd.testing.assert_frame_equal(one, two, atol=2e-3, rtol=0)


def twice(arguments: list[str], folder: Path) -> None:
    """A run, and the same again from its second step on; where two processes are started in."""
    main([*arguments, "--out", str(folder)])
    if os.environ["RANK"] == "0":
        whole = folder.with_name("whole")
        folder.rename(whole)
        folder.mkdir()
        shutil.copytree(whole / "checkpoint-2", folder / "checkpoint-2")
        shutil.copy(whole / "manifest.json", folder)
    torch.distributed.barrier()
    main([*arguments, "--out", str(folder)])


def test_shards_train_resume_and_open_as_one_process_does(base: Path, llava_json: LlavaRows, tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "image": f"{i}.jpg", "conversations": turns("<image>\nWhat?", "a cat " * (i + 1))}
        for i in range(8)
    ]
    shared = [
        "--model", str(base), "--layers", "1-2", "--method", "lora", "--merge", "--lora-rank", "4", "--lora-dropout",
        "0", "--train", "projector", "--data", str(llava_json(rows)), "--steps", "4", "--lr", "0.01",
        "--projector-lr", "0.01", "--log-every", "1", "--save-every", "2", "--keep", "5", "--max-length", "500",
        "--eval-data", "scenes", "--eval-limit", "1", "--eval-every", "2", "--loss-mean", "token",
    ]  # fmt: skip
    words = [
        "--model", str(base), "--layers", "none", "--train", "projector", "--scenes", "20", "--steps", "5",
        "--batch-size", "2", "--projector-lr", "0.01", "--log-every", "1", "--save-every", "1", "--max-length", "500",
        "--out", str(tmp_path / "words"),
    ]  # fmt: skip
    code = f"import pathlib, tests.tuning.training.test_processes as t; t.twice({[*shared, '--batch-size', '2']!r}, "
    code += f"pathlib.Path({str(tmp_path / 'resumed')!r})); t.main({words!r})"  # one start, which takes longest
    done = launch([*ACCELERATE, "--no_python"], [sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    note = next(line for line in done.stdout.splitlines() if line.startswith("sharded by FSDP"))
    own, total = (int(word.replace(",", "")) for word in note.split() if word[0].isdigit() and "," in word)
    assert 0.45 * total < own < 0.55 * total
    ends = {
        name: LlavaForConditionalGeneration.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("whole", "resumed")
    }
    before = load(base).model.state_dict()
    changed = {name for name, tensor in ends["whole"].items() if not torch.equal(tensor, before[name])}
    assert changed == {
        *(name for name in before if "projector" in name),
        *(n for n in before if ("layers.1." in n or "layers.2." in n) and "language" in n and "_proj.weight" in n),
    }
    for name, tensor in ends["whole"].items():
        assert torch.equal(tensor, ends["resumed"][name]), name
    assert losses_of(tmp_path / "whole")[2:] == losses_of(tmp_path / "resumed")
    cost = json.loads((tmp_path / "whole" / "cost.json").read_text())
    assert (cost["flops_forward"], cost["processes"]) == (None, 2)  # no process could run the whole model first
    assert cost["closed_form_forward"] > 0
    main([*shared, "--batch-size", "4", "--out", str(tmp_path / "one")])
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "whole"), abs=2e-4)
    # The projector alone: words need no backward pass, after which FSDP would go back to shards before it is saved.
    log = [json.loads(line) for line in (tmp_path / "words" / "log.jsonl").read_text().splitlines()]
    norms = [entry["grad_norm"] for entry in log if "grad_norm" in entry]
    assert 0 in norms
    assert max(norms) > 0
    assert (tmp_path / "words" / "checkpoint-5" / "weights.safetensors").is_file()


def test_the_first_version_of_fsdp_and_lisa_in_several_processes_are_refused(
    fresh: Llava, mix: SceneMix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    given = SimpleNamespace(fsdp_version=1, transformer_cls_names_to_wrap=None)
    accelerator = SimpleNamespace(num_processes=2, distributed_type="FSDP", state=SimpleNamespace(fsdp_plugin=given))
    with pytest.raises(UserError, match="FSDP must be its version 2, got 1"):
        prepare_fsdp(accelerator, fresh)
    given.fsdp_version = 2
    assert prepare_fsdp(accelerator, fresh)
    assert given.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert not prepare_fsdp(accelerator, fresh)
    monkeypatch.setenv("WORLD_SIZE", "2")
    resolved = resolve(LayerPlan("0-2", (), "lisa", lisa=Lisa(1, 2)), fresh)
    samples, once, quiet = samples_of(fresh, mix), Optimisation(steps=1), RunOptions(save_every=0)
    with pytest.raises(UserError, match="lisa must run in one process"):
        train(fresh, resolved, samples, optimisation=once, options=quiet, folder=tmp_path)
