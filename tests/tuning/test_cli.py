"""The command line: every row of bad input is one sentence and status 2; outputs open in plain transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

from models.llava import Llava
from models.loading.load import load
from models.pixels import read_pixels
from tasks.errors import UserError
from tasks.example import Picture
from tasks.scenes.questions import FAMILIES
from tests.tuning.conftest import LlavaRows, turns
from tuning.cli import main
from tuning.compare.config import CompareConfig
from tuning.config import TuningConfig, is_bf16
from tuning.cost.estimate import FULL
from tuning.training.checkpoint import named_checkpoint


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command."""

    def call(*arguments: str) -> Done:
        code = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def run(command: Run, base: Path, tmp_path: Path) -> Run:
    """Runs the command on the tiny checkpoint; options given win."""

    def call(*arguments: str, out: str | None = "run") -> Done:
        given = list(arguments)
        defaults = {"--model": str(base), "--scenes": "6", "--steps": "2", "--batch-size": "2", "--max-length": "500"}
        for name, value in defaults.items():
            if name not in given:
                given += [name, value]
        if out is not None:
            given += ["--out", str(tmp_path / out)]
        return command(*given)

    return call


def test_help_names_every_option(command: Run) -> None:
    shown = command("run", "--help").out
    for option in (
        "model", "data", "images", "layers", "train", "method", "epochs", "steps", "batch-size", "grad-accum", "lr",
        "projector-lr", "dtype", "gradient-checkpointing", "seed", "eval-data", "out", "resume", "dry-run", "merge",
        "keep-prefix", "max-length", "skip-bad", "connector", "format-prompts",
    ):  # fmt: skip
        assert f"--{option}" in shown


EVERY: dict[str, tuple[str, Callable[[TuningConfig], object], object]] = {
    "model": ("here", lambda c: c.model.name, "here"),
    "layers": ("6-16", lambda c: c.layer_plan.layers, "6-16"),
    "train": ("projector,vision:2", lambda c: c.layer_plan.train, ("projector", "vision:2")),
    "method": ("lora", lambda c: c.plan.method, "lora"),
    "lora-rank": ("8", lambda c: c.plan.lora.rank, 8),
    "lora-alpha": ("9", lambda c: c.plan.lora.alpha, 9),
    "lora-dropout": ("0.2", lambda c: c.plan.lora.dropout, 0.2),
    "lisa-active": ("3", lambda c: c.plan.lisa.active, 3),
    "lisa-every": ("4", lambda c: c.plan.lisa.every, 4),
    "stage": (
        "1",
        lambda c: (c.stage, c.training.lr, c.layer_plan.layers, c.prompt_format.recipe),
        (1, 1e-3, "none", "plain"),
    ),
    "connector": ("linear", lambda c: c.connector, "linear"),
    "data": ("x.json", lambda c: c.data.spec, "x.json"),
    "images": ("pictures", lambda c: str(c.data.images), "pictures"),
    "scenes": ("7", lambda c: c.data.scenes, 7),
    "limit": ("3", lambda c: c.data.limit, 3),
    "eval-data": ("scenes", lambda c: c.data.eval_spec, "scenes"),
    "eval-limit": ("5", lambda c: c.data.eval_limit, 5),
    "max-length": ("99", lambda c: c.prompt_format.max_length, 99),
    "on-long": ("refuse", lambda c: c.prompt_format.on_long, "refuse"),
    "epochs": ("2.5", lambda c: c.optimisation.epochs, 2.5),
    "steps": ("11", lambda c: c.optimisation.steps, 11),
    "batch-size": ("3", lambda c: c.optimisation.batch_size, 3),
    "grad-accum": ("2", lambda c: c.optimisation.grad_accum, 2),
    "lr": ("0.5", lambda c: c.training.lr, 0.5),
    "projector-lr": ("0.25", lambda c: c.training.projector_lr, 0.25),
    "warmup": ("0.1", lambda c: c.optimisation.warmup, 0.1),
    "seed": ("4", lambda c: c.optimisation.seed, 4),
    "dtype": ("bfloat16", lambda c: is_bf16(c.model), True),
    "revision": ("abc", lambda c: c.model.revision, "abc"),
    "attn": ("eager", lambda c: c.model.attn, "eager"),
    "quantize": ("4bit", lambda c: c.model.quantize, "4bit"),
    "device-map": ("auto", lambda c: c.model.device_map, "auto"),
    "weight-decay": ("0.1", lambda c: c.optimisation.weight_decay, 0.1),
    "clip": ("0", lambda c: c.optimisation.clip, 0),
    "workers": ("2", lambda c: c.run.workers, 2),
    "device": ("cuda:1", lambda c: c.model.device, "cuda:1"),
    "save-every": ("9", lambda c: c.run.save_every, 9),
    "keep": ("4", lambda c: c.run.keep, 4),
    "log-every": ("3", lambda c: c.run.log_every, 3),
    "eval-every": ("6", lambda c: c.eval_every, 6),
    "out": ("there", lambda c: str(c.out), "there"),
    "resume": ("there", lambda c: str(c.resume), "there"),
}
FLAGS: dict[str, Callable[[TuningConfig], bool]] = {
    "--gradient-checkpointing": lambda c: c.run.gradient_checkpointing,
    "--compile": lambda c: c.run.compile,
    "--keep-prefix": lambda c: c.keep_prefix,
    "--skip-bad": lambda c: c.data.skip_bad,
    "--merge": lambda c: c.merge,
    "--no-format-prompts": lambda c: not c.data.format_prompts,
    "--in-turn": lambda c: c.data.in_turn,
    "--overwrite": lambda c: c.overwrite,
    "--dry-run": lambda c: c.dry_run,
}


def test_every_option_reaches_the_run(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.errors import UserError

    seen: list[TuningConfig] = []

    def record(config: TuningConfig, **options: object) -> None:
        seen.append(config)
        raise UserError("enough")

    monkeypatch.setattr("tuning.run.run_tuning", record)
    for name, (text, read, value) in EVERY.items():
        command(f"--{name}", text)
        assert read(seen[-1]) == value, name
        command()
        assert read(seen[-1]) != value, name
    for flag, check in FLAGS.items():
        command(flag)
        assert check(seen[-1]), flag
        command()
        assert not check(seen[-1]), flag
    command("--method", "lora")
    assert seen[-1].training.lr == 2e-4
    assert (seen[-1].layer_plan.layers, seen[-1].layer_plan.train) == ("all", ("projector",))
    command("--stage", "2")
    assert (seen[-1].layer_plan.layers, seen[-1].layer_plan.train) == (FULL.layers, FULL.train)
    command("--stage", "1")
    assert (seen[-1].layer_plan.layers, seen[-1].layer_plan.train) == ("none", ("projector",))
    command("--layers", "all")
    assert (seen[-1].layer_plan.layers, seen[-1].layer_plan.train) == ("all", ("projector",))


def test_every_option_reaches_the_comparison(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.errors import UserError

    seen: list[CompareConfig] = []

    def record(config: CompareConfig, **options: object) -> None:
        seen.append(config)
        raise UserError("enough")

    monkeypatch.setattr("tuning.compare.compare.run_compare", record)
    line = (
        "compare --model m --reference smol --plans full,last --band 3-5 --train projector,final_norm --lora-rank 4 "
        "--seeds 0,2 --scenes 9 --score-scenes 8 --steps 7 --batch-size 6 --lr 0.5 --lora-lr 0.25 --projector-lr 0.125 "
        "--dtype bfloat16 --compile --timing-rounds 1 --device cuda --save-every 3 --out o --data d.json --images i "
        "--limit 5 --eval-data scenes,e.jsonl --eval-limit 6 --skip-bad --grad-accum 2 "
        "--gradient-checkpointing --workers 1"
    )
    assert command(*line.split()).code == 2
    c = seen[0]
    assert (c.model.name, c.reference, c.plans, c.band) == ("m", "smol", ("full", "last"), "3-5")
    assert (c.train, c.lora_rank, c.seeds, c.data.scenes, c.data.score_scenes) == (
        ("projector", "final_norm"),
        4,
        (0, 2),
        9,
        8,
    )
    assert (c.optimisation.steps, c.optimisation.batch_size, c.optimisation.lr) == (7, 6, 0.5)
    assert (c.lora_lr, c.optimisation.projector_lr, c.timing_rounds, str(c.out)) == (0.25, 0.125, 1, "o")
    assert (is_bf16(c.model), c.run.compile, c.model.device, c.run.save_every) == (True, True, "cuda", 3)
    assert (c.data.spec, str(c.data.images), c.data.limit) == ("d.json", "i", 5)
    assert (c.data.eval_specs, c.data.eval_limit, c.data.skip_bad) == (("scenes", "e.jsonl"), 6, True)
    assert (c.optimisation.grad_accum, c.run.workers) == (2, 1)
    assert c.run.gradient_checkpointing
    bad = command("compare", "--seeds", "x")
    assert (bad.code, "seeds must be a whole number, got 'x'" in bad.err) == (2, True)


def test_a_dry_run_prints_the_plan_counts_memory_and_compute_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    done = run("--layers", "1-2", "--dry-run")
    assert done.code == 0
    for text in (
        "layers     1-2 (2 of 3)",
        "6 samples",
        "TFLOP a step",
        "of full tuning",
        "optimizer 0.00 GB",
        "steps      2",
    ):
        assert text in done.out
    assert not (tmp_path / "run").exists()


def test_the_output_opens_in_plain_transformers_with_plan_and_cost_beside(run: Run, base: Path, tmp_path: Path) -> None:
    done = run("--layers", "1", "--train", "projector", "--lr", "0.01", "--eval-data", "scenes", "--eval-limit", "1")
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    tuned = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    LlavaProcessor.from_pretrained(folder, backend="pil")
    assert load(folder).n_layers == 3  # with its checks on a real forward
    before = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).state_dict()
    changed = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}
    plan = json.loads((folder / "plan.json").read_text())
    assert changed == set(plan["parameters"])
    evaluated = pd.read_csv(folder / "evaluations.csv")
    assert set(evaluated["n"]) == {1} and evaluated["family"].nunique() == len(FAMILIES) + 1
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["flops_forward"] == pytest.approx(cost["closed_form_forward"], rel=0.03)
    assert cost["flops_backward"] == pytest.approx(cost["closed_form_backward"], rel=0.03)
    assert 0 < cost["closed_form_ratio"] < 1
    assert cost["trainable"] == plan["trainable"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 0
    again = run("--layers", "1")
    assert again.code == 2
    assert "out must contain the same run or none" in again.err


@pytest.mark.parametrize("stage", ["1", "2"])
def test_the_saved_processor_prepares_pictures_as_in_training(
    stage: str, run: Run, base: Path, llava_json: LlavaRows, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "image": f"{i}.png", "conversations": turns("<image>\nWhat?", "red")} for i in range(2)]
    data = ("--data", str(llava_json(rows)), "--images", str(tmp_path))
    done = run("--stage", stage, "--steps", "1", "--train", "projector", "--layers", "none", *data)
    assert done.code == 0, done.err
    picture = Picture("0", lambda: Image.open(tmp_path / "0.png"))
    trained = read_pixels(load(base), picture, "hf" if stage == "1" else "pad")
    plain: Any = AutoImageProcessor.from_pretrained(tmp_path / "run", backend="pil")
    assert torch.equal(plain(Image.open(tmp_path / "0.png"), return_tensors="pt")["pixel_values"][0], trained)


@pytest.mark.parametrize("train", ["projector", "projector,vision,final_norm"])
def test_lora_is_written_for_peft_or_merged_and_both_agree(train: str, run: Run, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    options = ["--layers", "1-2", "--train", train, "--method", "lora", "--lora-rank", "2", "--lora-alpha", "4",
               "--lr", "0.02", "--projector-lr", "0.02"]  # fmt: skip
    assert run(*options).code == 0
    assert run(*options, "--merge", out="merged").code == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "plan.json", "cost.json"} <= names
    assert "model.safetensors" not in names
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, tmp_path / "run").eval()
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    plain = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.randint(3, 500, (1, 12), generator=torch.Generator().manual_seed(0))
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    ids = torch.cat([ids, torch.full((1, 16), 600), ids], dim=1)
    with torch.no_grad():
        ours, theirs, start = (m(input_ids=ids, pixel_values=pixels).logits for m in (merged, adapted, plain))
    assert not torch.allclose(start, ours, atol=1e-3)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    # The folder of factors is a model of its own.
    added = load(tmp_path / "run")
    assert added.id == "run" and added.weight_hash != load(base).weight_hash
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(added.model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_bf16_run_leaves_frozen_weights_bitwise(run: Run, base: Path, tmp_path: Path) -> None:
    assert run("--layers", "1", "--train", "none", "--dtype", "bfloat16", "--lr", "0.01").code == 0
    tuned, before = (
        LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (tmp_path / "run", base)
    )
    changed = {name for name, tensor in tuned.items() if not torch.equal(tensor, before[name])}
    assert changed == set(json.loads((tmp_path / "run" / "plan.json").read_text())["parameters"])


def test_a_run_goes_on_from_its_last_checkpoint(run: Run, command: Run, tmp_path: Path) -> None:
    options = ("--layers", "1", "--steps", "4", "--save-every", "2", "--lr", "0.01", "--keep", "5")
    assert run(*options, out="whole").code == 0
    assert run(*options).code == 0
    folder = tmp_path / "run"
    shutil.rmtree(folder / "checkpoint-4")
    for leftover in ("model.safetensors", "cost.json"):
        (folder / leftover).unlink()
    assert run(*options).code == 0
    one, other = (
        LlavaForConditionalGeneration.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("run", "whole")
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    again, shown = run(*options), command("show", str(folder))
    assert (again.code, again.out) == (shown.code, shown.out) == (0, shown.out)
    assert "steps:   4" in shown.out
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp  # a finished run is not run again
    changed = run(*options, "--seed", "1")
    assert changed.code == 2
    assert "settings.seed was 0, is 1" in changed.err


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "state.json",
        "weights.safetensors",
        "optimizer.json",
        "optimizer.safetensors",
        "random-0.safetensors",
    ],
)
def test_a_damaged_checkpoint_is_named(name: str, run: Run, tmp_path: Path) -> None:
    assert run("--layers", "1", "--train", "none", "--save-every", "1", "--steps", "1").code == 0
    checkpoint = tmp_path / "run" / "checkpoint-1"
    whole = (checkpoint / name).read_bytes()
    for damaged in (None, b"", whole[: len(whole) // 2]):
        (checkpoint / name).unlink(missing_ok=True)
        if damaged is not None:
            (checkpoint / name).write_bytes(damaged)
        done = run("--layers", "1", "--train", "none", "--save-every", "1", "--resume", str(checkpoint), "--steps", "1")
        assert done.code == 2 and "Traceback" not in done.err
        assert name in done.err or (damaged is None and "resume must name a checkpoint folder" in done.err)
        assert done.err.rstrip().endswith((".", "checkpoint-N.")), "it says what to do"


def test_workers_are_refused_where_processes_cannot_be_forked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.config.FORKS", False)
    done = run("--layers", "1", "--workers", "1")
    assert (done.code, "workers must be 0 on" in done.err) == (2, True)


def test_a_run_is_not_removed_to_resume_its_own_checkpoint(run: Run, tmp_path: Path) -> None:
    first = run("--layers", "1", "--steps", "1", "--save-every", "1")
    assert first.code == 0
    kept = sorted((tmp_path / "run").rglob("*"))
    for name in ("last", str(tmp_path / "run" / "checkpoint-1")):
        again = run("--layers", "1", "--steps", "2", "--save-every", "1", "--overwrite", "--resume", name)
        assert (again.code, "resume must not name a checkpoint of the run" in again.err) == (2, True)
    assert sorted((tmp_path / "run").rglob("*")) == kept


def test_last_names_the_latest_checkpoint_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resume must name an existing checkpoint, got 'last'"):
        named_checkpoint(Path("last"), tmp_path)
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".checkpoint-12.partial").mkdir()  # of a process that was killed
    assert named_checkpoint(Path("last"), tmp_path) == tmp_path / "checkpoint-10"
    assert named_checkpoint(tmp_path / "checkpoint-2", tmp_path) == tmp_path / "checkpoint-2"
    assert named_checkpoint(None, tmp_path) is None


def test_another_plan_or_data_cannot_resume_a_checkpoint(run: Run, tmp_path: Path) -> None:
    assert run("--layers", "1", "--save-every", "2").code == 0
    there = str(tmp_path / "run" / "checkpoint-2")
    other = run("--layers", "2", "--resume", there, out="other")
    assert (other.code, "another settings.layers: it was '1', is '2'" in other.err) == (2, True)
    more = run("--layers", "1", "--scenes", "7", "--resume", there, out="more")
    assert (more.code, "another settings.scenes: it was 6, is 7" in more.err) == (2, True)


def test_a_data_file_that_changed_cannot_resume_a_checkpoint(run: Run, llava_json: LlavaRows) -> None:
    options = ["--layers", "1", "--train", "none", "--save-every", "2", "--steps", "2"]
    data = str(llava_json([{"id": "a", "conversations": turns("Two?", "2")}]))
    assert run(*options, "--data", data).code == 0
    llava_json([{"id": "a", "conversations": turns("Two?", "two")}])
    other = run(*options, "--data", data)
    assert (other.code, "differs: data was" in other.err) == (2, True)
    assert run(*options, "--data", data, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "7"], r"layer must be in [0, 3), got 7"),
        (["--layers", "none", "--train", "none"], "plan must train something"),
        (["--train", "head"], "train must be some of projector"),
        (["--layers", "1", "--data", "nowhere.json"], "data must be 'scenes' or an existing file"),
        (["--steps", "0"], "steps must be >= 1, got 0"),
        (["--batch-size", "0"], "batch-size must be >= 1"),
        (["--lr", "-1"], "lr must be >= 0"),
        (["--stage", "3"], "stage must be one of 1, 2, got '3'"),
        (["--device", "cuda:99"], "device must be one that this machine has"),
        (["--device", "tpu"], "device must be cpu, cuda"),
        (["--model", "no/where/at/all"], "model must be one of smol"),
        (["--resume", "nowhere"], "resume must name an existing checkpoint"),
        (["--keep-prefix", "--layers", "1"], "keep-prefix must have frozen layers below"),
        (["--layers", "auto:nowhere"], "auto must name a finished run"),
        (["--connector", "linear", "--method", "lora", "--layers", "1"], "connector must be kept where LoRA"),
        (["--layers", "every:nan"], "every must count layers in [1, 3], got nan"),
        (["--layers", "first:inf"], "first must count layers in [1, 3], got inf"),
        (["--warmup", "3"], "warmup must be a share of the steps in [0, 1), got 3"),
        (["--seed", "-1"], "seed must be >= 0, got -1"),
        (["--seed", "4294967296"], "seed must be below 2^32"),
        (["--workers", "-1"], "workers must be >= 0"),
        (["--layers", "1", "--merge"], "merge must have LoRA factors to merge, got --method full"),
        (["--layers", "1", "--data", "a.json", "--in-turn"], "--in-turn must have scenes to act on, got the file"),
        (["--dtype", "float16"], "dtype must be float32 or bfloat16"),
        (["--eval-every", "-1"], "eval-every must be >= 0"),
        (["--max-length", "20"], "data must have at least one sample that can be used"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments: list[str], message: str, run: Run) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.err.startswith("layerwise-finetune: ")


DATA = {
    "empty": ([], "data must have at least one sample"),
    "no assistant": ([{"id": "a", "conversations": turns("Why?")}], "no assistant turn"),
    "missing picture": (
        [
            {"id": "a", "image": "missing.jpg", "conversations": turns("<image>\nWhat?", "a")},
            {"id": "b", "conversations": turns("Two?", "2")},
        ],
        "1 that cannot ('a': its picture 'missing.jpg' is missing)",
    ),
    "path outside": (
        [{"id": "a", "image": "../x.jpg", "conversations": turns("<image>\nWhat?", "a")}],
        "image must stay inside the image folder",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data_are_one_sentence_and_status_2(name: str, run: Run, llava_json: LlavaRows) -> None:
    rows, message = DATA[name]
    if name == "path outside":
        path = llava_json([])
        path.write_text(json.dumps(rows))
    else:
        path = llava_json(rows)
    done = run("--layers", "1", "--data", str(path))
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_bad_samples_can_be_left_out_counted_and_listed(run: Run, llava_json: LlavaRows, tmp_path: Path) -> None:
    rows = [{"id": f"g{i}", "conversations": turns("Two?", "2")} for i in range(4)]
    path = llava_json([*rows, {"id": "bad", "conversations": turns("Why?")}])
    done = run("--layers", "1", "--train", "none", "--data", str(path), "--skip-bad")
    assert done.code == 0, done.err
    assert "1 samples left out" in done.out
    assert "bad,no assistant turn" in (tmp_path / "run" / "skipped.csv").read_text()


def test_questions_that_cannot_be_scored_are_refused_or_listed(run: Run, llava_json: LlavaRows, tmp_path: Path) -> None:
    rows = [
        {"id": "fine", "conversations": turns("Two?", "2")},
        {"id": "long", "conversations": turns("Say it.", "two " * 600)},
        {"id": "gone", "image": "missing.jpg", "conversations": turns("<image>\nWhat?", "a")},
    ]
    options = ("--layers", "1", "--train", "none", "--eval-data", str(llava_json(rows)))
    refused = run(*options)
    assert (refused.code, "got 2 that cannot ('long': " in refused.err) == (2, True)
    done = run(*options, "--skip-bad")
    assert done.code == 0, done.err
    assert "2 samples left out" in done.out
    assert pd.read_csv(tmp_path / "run" / "skipped-eval.csv")["id"].tolist() == ["long", "gone"]
    assert set(pd.read_csv(tmp_path / "run" / "evaluations.csv")["n"]) == {1}


def test_cost_is_of_an_optimizer_step_and_says_what_waiting_took(run: Run, tmp_path: Path) -> None:
    costs = []
    for accum in ("1", "2"):
        assert run("--layers", "1", "--grad-accum", accum, "--steps", "3", out=accum).code == 0
        costs.append(json.loads((tmp_path / accum / "cost.json").read_text()))
    for key in ("flops_forward", "flops_backward"):
        assert costs[1][key] == 2 * costs[0][key] > 0
    assert costs[1]["closed_form_forward"] == pytest.approx(costs[1]["flops_forward"], rel=0.03)
    assert costs[1]["bytes_activations"] == costs[0]["bytes_activations"]
    assert costs[0]["data_seconds_median"] > 0
    assert costs[0]["processes"] == 1


def test_a_step_that_no_memory_holds_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GB.")

    monkeypatch.setattr("tuning.run.train", fail)
    done = run("--layers", "1")
    assert done.code == 2
    assert "must have room for a step of 2 samples, got CUDA out of memory. Tried to allocate 2 GB. Lower" in done.err


def test_data_that_stop_being_readable_are_one_sentence(
    run: Run, llava_json: LlavaRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = llava_json([{"id": "a", "conversations": turns("Two?", "2")}])

    def fail(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tuning.data.samples.Samples._item", fail)
    done = run("--layers", "1", "--train", "none", "--data", str(path))
    assert (done.code, done.err.strip()) == (2, "layerwise-finetune: [Errno 5] Input/output error")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_picture_is_named_when_it_is_reached(
    workers: str, run: Run, llava_json: LlavaRows, tmp_path: Path
) -> None:
    names = [f"{number}.jpg" for number in range(4)]
    path = llava_json([{"id": n, "image": n, "conversations": turns("<image>\nWhat?", "a")} for n in names])
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    done = run("--layers", "1", "--data", str(path), "--workers", workers)
    assert done.code == 2
    assert done.err.startswith("layerwise-finetune: picture must be a readable image file")
    assert "Traceback" not in done.err


def test_a_checkpoint_of_another_architecture_is_refused(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    done = run("--model", str(other))
    assert done.code == 2
    assert "Traceback" not in done.err


def test_a_loss_that_is_no_number_ends_with_status_2(run: Run) -> None:
    done = run("--layers", "all", "--lr", "1e30", "--steps", "6")
    assert done.code == 2
    assert "must be finite" in done.err
    assert "at step" in done.err


def test_somebody_s_folder_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = run("--layers", "1")
    assert (done.code, "out must be empty or contain a run" in done.err) == (2, True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_a_fresh_fixture_is_what_the_folder_holds(base: Path, llava: Llava) -> None:
    assert load(base).model.num_parameters() == llava.model.num_parameters()
