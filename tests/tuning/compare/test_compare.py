"""Plans side by side: same start, same data, resumable plan by plan, and a table that says what it says."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from models.loading.load import load
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.errors import UserError
from tests.conftest import tiny_config
from tuning.cli import main
from tuning.compare.compare import chosen_plans, run_compare
from tuning.compare.config import CompareConfig, CompareData
from tuning.compare.report_table import render_table
from tuning.compare.table import compare_table
from tuning.config import Optimisation, RunOptions
from tuning.plan.default_plans import default_plans
from tuning.plan.resolve import resolve
from tuning.scoring.answers import text_log_likelihood
from tuning.training.save import write_json

COLUMNS = {
    "plan", "layers", "trainable", "flops_ratio", "closed_form_ratio", "step_time_ratio", "peak_memory", "family",
    "score", "retention", "lower", "upper", "seeds",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    config = tiny_config(grouped=True)
    config.text_config.max_position_embeddings = 1024
    llava = load(config, seed=0, validate=False)
    llava.model.save_pretrained(folder)
    llava.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    return CompareConfig(
        model=ModelOptions(name=str(base)),
        plans=("start", "full", "middle band", "LoRA on the band"),
        lora_rank=2,
        data=CompareData(scenes=4, score_scenes=2),
        optimisation=Optimisation(steps=2, batch_size=2, lr=1e-3, projector_lr=1e-3),
        run=RunOptions(save_every=1),
        timing_rounds=1,
        out=tmp_path_factory.mktemp("compare"),
    )


def compare(config: CompareConfig, **more: Any) -> pd.DataFrame:
    """The table of a comparison."""
    done = run_compare(config, **more)
    assert isinstance(done, FinishedRun)
    return done.results


@pytest.fixture(scope="module")
def finished(settings: CompareConfig) -> pd.DataFrame:
    return compare(settings)


def test_the_table_has_every_plan_condition_and_family_with_its_columns(
    finished: pd.DataFrame, settings: CompareConfig
) -> None:
    assert set(finished.columns) >= COLUMNS
    assert list(dict.fromkeys(finished["plan"])) == list(settings.plans)
    assert set(finished["condition"]) == {"seen", "unseen", "text", "passage"}
    assert set(finished["family"]) == {
        "what",
        "colour",
        "where",
        "count",
        "exists",
        "category",
        "choice",
        "all",
        "text",
    }
    trainable = finished.groupby("plan")["trainable"].unique().map(list)
    llava = load(settings.model.name, validate=False)
    for plan in chosen_plans(settings, llava):
        assert trainable[plan.name] == [0 if plan.name == "start" else resolve(plan, llava).trained]
    full = finished[finished["plan"] == "full"]
    assert (full["flops_ratio"] == 1).all()
    assert (full["closed_form_ratio"] == 1).all()
    band = finished[finished["plan"] == "middle band"].iloc[0]
    assert 0 < band["flops_ratio"] < 1
    assert band["flops_ratio"] == pytest.approx(band["closed_form_ratio"], rel=0.03)
    passage = finished[finished["condition"] == "passage"].set_index("plan")
    assert passage.loc["full", "retention"] == 1
    assert (passage["score"] > 0).all()
    seen = full[full["condition"] == "seen"].set_index("family")["chance"]
    assert (seen["exists"], seen["count"]) == (0.5, 0.25)
    assert seen["all"] == pytest.approx(seen.drop("all").mean())  # one question of every family about a scene
    assert passage["chance"].isna().all()
    assert pd.read_csv(settings.out / "compare.csv").shape == finished.shape
    assert {path.suffix for path in (settings.out / "figures").glob("[!.]*")} == {".png", ".svg"}
    drawn = {path.stem for path in (settings.out / "figures").glob("[!.]*")}
    overall = full[(full["family"] == "all") & (full["condition"] == "seen")].iloc[0]
    kept = {"cost_against_retention"} if overall["score"] > 0 else set()  # of nothing there is no retention
    assert drawn == {"accuracy_by_family", "retention", "plans"} | kept
    assert render_table(finished).row_count == 4


def test_show_prints_a_finished_comparison_and_a_dry_run_what_remains(
    finished: pd.DataFrame, settings: CompareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["show", str(settings.out)])
    shown = capsys.readouterr().out
    assert all(name in shown for name in settings.plans) and str(settings.out / "compare.csv") in shown
    text = run_compare(replace(settings, seeds=(0, 1), dry_run=True))
    *_, time, remain = str(text).splitlines()
    assert remain == "3 of 7 runs remain"  # start has one seed
    assert time.startswith("time: about ") and "training and scoring plans" in time


def test_a_finished_plan_is_not_run_again_and_a_new_seed_is_added(
    finished: pd.DataFrame, settings: CompareConfig
) -> None:
    notes: list[str] = []
    stamps = {path: path.stat().st_mtime_ns for path in settings.out.glob("runs/*/answers.parquet")}
    assert len(stamps) == 4
    told: list[tuple[str, int, int]] = []
    again = compare(settings, on_note=notes.append, on_progress=lambda *report: told.append(report))
    pd.testing.assert_frame_equal(again, finished)
    assert told == []  # nothing was left to do, not even reading
    assert not any("train" in note and "seed 0:" in note for note in notes)
    more = compare(
        replace(settings, seeds=(0, 1), plans=("full", "middle band")), on_progress=lambda *report: told.append(report)
    )
    asked = [(f"reading questions of {name}", 1, 2) for name in ("seen", "unseen", "text") for _ in range(2)]
    within = [report for report in told if "seed" in report[0]]
    assert {stage for stage, _, _ in within} >= {"full, seed 1: training", "middle band, seed 1: training"}
    assert not any("seed 0" in stage for stage, _, _ in within)
    whole = [report for report in told if report not in within]
    assert whole == [("reading samples", 1, 4)] * 4 + asked + [("training and scoring plans", 1, 4)] * 4
    seeds = more.groupby("plan")["seeds"].unique().map(list).to_dict()
    assert seeds == {"start": [1], "full": [2], "middle band": [2], "LoRA on the band": [1]}
    same = ["condition", "family", "retention", "lower", "upper"]  # the seed that the plan has is that of full before
    before, after = (table.loc[table["plan"] == "LoRA on the band", same].reset_index() for table in (finished, more))
    pd.testing.assert_frame_equal(before.drop(columns="index"), after.drop(columns="index"))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert not list(settings.out.glob("runs/*/checkpoint-*"))


def test_runs_of_another_plan_of_the_same_name_are_refused(
    finished: pd.DataFrame, settings: CompareConfig, tmp_path: Path
) -> None:
    """A version that means other layers by a name must not describe what ran under it before."""
    shutil.copytree(settings.out, tmp_path / "old")
    path = tmp_path / "old" / "runs" / "middle-band-seed0" / "run.json"
    facts = json.loads(path.read_text())
    write_json(path, {**facts, "layers": "2"})
    with pytest.raises(
        UserError, match=f"plan 'middle band' must be the one that ran, got layers 2 .* {facts['layers']} now"
    ):
        run_compare(replace(settings, out=tmp_path / "old"))


def test_every_plan_sees_the_same_data_in_the_same_order(finished: pd.DataFrame, settings: CompareConfig) -> None:
    first = {}
    for plan in ("full", "middle-band", "lora-on-the-band"):
        log = (settings.out / "runs" / f"{plan}-seed0" / "log.jsonl").read_text().splitlines()
        first[plan] = json.loads(log[0])["loss"]
    assert first["full"] == first["middle-band"]  # before the first update the models are the same
    assert first["full"] == pytest.approx(first["lora-on-the-band"], abs=1e-5)


def test_another_comparison_s_folder_is_refused(
    finished: pd.DataFrame, settings: CompareConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="settings.scenes was 4, is 5"):
        run_compare(replace(settings, data=replace(settings.data, scenes=5)))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="out must be empty or contain a run of layerwise-finetune compare"):
        run_compare(replace(settings, out=tmp_path))


def killed_within_a_plan(settings: CompareConfig) -> None:
    """A comparison whose process dies in the middle band's second step; where a process is killed in."""

    def note(line: str) -> None:
        if line.startswith("middle band, seed 0: step 2/"):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run_compare(settings, on_note=note)


def test_a_comparison_killed_with_sigkill_goes_on_with_the_plan_it_was_in(
    finished: pd.DataFrame, settings: CompareConfig, tmp_path: Path
) -> None:
    again = replace(
        settings, plans=("start", "full", "middle band"), timing_rounds=0, run=RunOptions(save_every=1, log_every=1),
        out=tmp_path / "killed",
    )  # fmt: skip
    code = f"""
from pathlib import Path, PosixPath

import torch

from records.options import ModelOptions
from tests.tuning.compare.test_compare import killed_within_a_plan
from tuning.compare.compare import run_compare
from tuning.compare.config import CompareConfig, CompareData
from tuning.config import Optimisation, RunOptions

killed_within_a_plan({again!r})
"""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    runs = again.out / "runs"
    stamps = {path: path.stat().st_mtime_ns for path in runs.glob("*/answers.parquet")}
    assert {path.parent.name for path in stamps} == {"start-seed0", "full-seed0"}
    assert (runs / "middle-band-seed0" / "checkpoint-1").is_dir()
    assert not (again.out / "compare.csv").exists()
    notes: list[str] = []
    table = compare(again, on_note=notes.append)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert not any(note.startswith("full, seed 0") for note in notes)
    whole = finished[finished["plan"].isin(again.plans)]
    assert table["flops_ratio"].isna().all()  # nothing was timed, but what trains is known
    columns = ["plan", "trainable", "condition", "family", "score", "retention"]
    pd.testing.assert_frame_equal(table[columns], whole[columns].reset_index(drop=True), rtol=1e-3)


def test_two_processes_share_a_comparison(
    finished: pd.DataFrame, settings: CompareConfig, base: Path, tmp_path: Path
) -> None:
    shared = replace(settings, plans=("start", "full"), reference=str(base), out=tmp_path / "shared")
    code = f"""
from pathlib import Path, PosixPath

import torch

from records.options import ModelOptions
from tests.tuning.compare.test_compare import killed_within_a_plan
from tuning.compare.compare import run_compare
from tuning.compare.config import CompareConfig, CompareData
from tuning.config import Optimisation, RunOptions

torch.set_num_threads(1)
run_compare({shared!r}, on_note=lambda line: print(line, flush=True))
"""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [process.communicate(timeout=200)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    said = [line for line in lines[0] + lines[1] if "seen 0." in line or "seen 1." in line]
    assert sorted(line.split(",")[0].split(":")[0] for line in said) == sorted(
        ["start", "full", f"reference {base.name}"]
    )
    assert sum(line.startswith("timing") for line in lines[0] + lines[1]) == 1
    table = pd.read_csv(shared.out / "compare.csv")
    whole = finished[finished["plan"].isin(shared.plans)]
    columns = ["plan", "condition", "family", "score", "retention"]
    own = table.loc[table["plan"].isin(shared.plans), columns]
    pd.testing.assert_frame_equal(own, whole[columns].reset_index(drop=True), rtol=1e-3)
    later = compare(replace(shared, plans=("full",), reference=None))
    assert list(dict.fromkeys(later["plan"])) == ["start", "full", f"reference {base.name}"]


def test_the_table_holds_all_that_is_finished_whatever_the_last_call_named(
    finished: pd.DataFrame, settings: CompareConfig, tmp_path: Path
) -> None:
    shutil.copytree(settings.out, tmp_path / "copy")
    table = compare(replace(settings, plans=("full",), out=tmp_path / "copy"))
    assert list(dict.fromkeys(table["plan"])) == list(settings.plans)
    columns = ["layers", "train", "method", "trainable", "flops_ratio", "step_time_ratio", "peak_memory"]
    first, again = (one.groupby("plan", sort=False)[columns].first() for one in (finished, table))
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "copy" / "compare.csv")[["plan"]], table[["plan"]])


def test_a_plan_that_is_added_is_timed_beside_full_and_no_cost_is_lost(
    finished: pd.DataFrame, settings: CompareConfig, tmp_path: Path
) -> None:
    shutil.copytree(settings.out, tmp_path / "copy")
    path = tmp_path / "copy" / "costs.json"
    known = json.loads(path.read_text())
    known = {name: {**known[name], "step_seconds_median": s} for name, s in (("full", 1000), ("LoRA on the band", 500))}
    for cost in known.values():
        cost["flops_forward"] *= 10  # of a larger batch
        for name in ("full_step_seconds_median", "full_flops", "full_closed_form"):
            del cost[name]  # as files were before plans could be added
    write_json(path, known)
    notes: list[str] = []
    config = replace(settings, plans=("full", "middle band"), out=tmp_path / "copy")
    drawn = config.out / "figures" / "retention.png"
    before = drawn.stat().st_mtime_ns
    table = compare(config, on_note=notes.append)
    after = drawn.stat().st_mtime_ns
    assert after > before, "the table changed"
    assert "timing 2 plans, 1 rounds" in notes
    ratios = table.groupby("plan")["step_time_ratio"].first()
    assert (ratios["full"], ratios["LoRA on the band"]) == (1, 0.5)
    operations = table.groupby("plan")[["flops_ratio", "closed_form_ratio"]].first().loc["middle band"]
    assert operations["flops_ratio"] == pytest.approx(operations["closed_form_ratio"], rel=0.03)
    costs = json.loads(path.read_text())
    assert costs.keys() == {"full", "middle band", "LoRA on the band"}
    assert all(costs[name].items() >= cost.items() for name, cost in known.items())
    band = costs["middle band"]
    assert band["full_step_seconds_median"] < 100  # that of this session, not the 1000 of the other
    assert ratios["middle band"] == band["step_seconds_median"] / band["full_step_seconds_median"]
    text = path.read_text()
    run_compare(config, on_note=notes.append)
    assert sum(note.startswith("timing") for note in notes) == 1
    assert path.read_text() == text and drawn.stat().st_mtime_ns == after


def test_kept_weights_are_those_that_were_scored(
    finished: pd.DataFrame, settings: CompareConfig, tmp_path: Path
) -> None:
    assert not list(settings.out.glob("runs/*/*.safetensors"))
    config = replace(
        settings, plans=("start", "full", "LoRA on the band"), timing_rounds=0, keep_weights=True, out=tmp_path / "kept"
    )
    assert config.settings == settings.settings  # the same comparison, so that it can be added to one that keeps none
    run_compare(config)
    words = {}
    for name in ("start", "full", "lora-on-the-band"):
        facts = [
            json.loads((out / "runs" / f"{name}-seed0" / "run.json").read_text()) for out in (settings.out, config.out)
        ]
        words[name] = facts[1]["text_log_likelihood"]
        assert words[name] == pytest.approx(facts[0]["text_log_likelihood"], rel=1e-6)  # keeping changes no score
    kept = {path.parent.name: path.name for path in config.out.glob("runs/*/*.safetensors")}
    assert kept == {"full-seed0": "model.safetensors", "lora-on-the-band-seed0": "adapter_model.safetensors"}
    assert not list(config.out.glob("runs/*/checkpoint-*"))
    folder = config.out / "runs" / "full-seed0"
    value = text_log_likelihood(load(str(folder), validate=False))
    assert value == pytest.approx(words["full"], rel=1e-6)
    assert value != pytest.approx(words["start"], rel=1e-4)
    assert json.loads((folder / "plan.json").read_text())["plan"]["name"] == "full"


def test_the_option_keeps_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def record(config: CompareConfig, **options: object) -> None:
        seen.append(config.keep_weights)
        raise UserError("enough")

    monkeypatch.setattr("tuning.compare.compare.run_compare", record)
    for line in (["compare"], ["compare", "--keep-weights"]):
        with pytest.raises(SystemExit, match="2"):
            main(line)
    assert seen == [False, True]


def test_a_launcher_is_refused_before_anything_is_written(
    settings: CompareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher would join the processes, and each trains a plan of its own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"without a launcher, got one that started 2 processes.*--out.*--device"):
        run_compare(replace(settings, out=tmp_path / "new"))
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--out", str(tmp_path / "new")])
    assert "without a launcher" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": ("full", "middle")}, "plan must be one of start, full, middle band"),
        ({"plans": ("start", "middle band")}, "plans must contain 'full'"),
        ({"seeds": (0, 2**32)}, r"seed must be below 2\^32"),
        ({"seeds": (1, 1)}, "seeds must be different numbers"),
        ({"band": "9"}, r"layer must be in \[0, 3\), got 9"),
        ({"data": CompareData(scenes=0)}, "scenes must be >= 1, got 0"),
        ({"data": CompareData(score_scenes=0)}, "score-scenes must be >= 1, got 0"),
        ({"optimisation": Optimisation(steps=0)}, "steps must be >= 1, got 0"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    change: dict[str, object], message: str, settings: CompareConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_compare(replace(settings, out=tmp_path / "new", timing_rounds=0, **change))  # type: ignore[arg-type]


def test_the_given_band_and_parts_reach_the_plans(settings: CompareConfig, base: Path) -> None:
    config = replace(settings, plans=(), band="0-1", train=("final_norm",))
    plans = {plan.name: plan for plan in chosen_plans(config, load(base, validate=False))}
    assert len(plans) == 11
    named = replace(config, plans=("full", "LISA on the band"))
    lisa = chosen_plans(named, load(base, validate=False))[-1]
    assert (lisa.layers, lisa.method, lisa.lisa.active) == ("0-1", "lisa", 2)
    assert (plans["middle band"].layers, plans["complement"].layers) == ("0-1", "2")
    assert plans["middle band"].train == plans["LoRA on the band"].train == ("final_norm",)
    assert plans["projector only"].train == ("projector",)
    assert plans["last"].layers == "last:2"


def test_the_table_of_the_gallery_follows_from_the_committed_answers() -> None:
    root = Path(__file__).parents[3]
    saved = pd.read_csv(root / "figures" / "gallery" / "retention_smol.csv")
    trainable = saved.groupby("plan")["trainable"].first()
    made = compare_table(
        root / "benchmarks" / "records" / "2026-11-22-compare-smol",
        default_plans(30),
        n_layers=30,
        trainable=lambda plan: int(trainable[plan.name]),
    )
    again = pd.read_csv(io.StringIO(made.to_csv(index=False)))
    pd.testing.assert_frame_equal(again, saved, rtol=1e-9)
    for name in ("accuracy_by_family_smol", "cost_retention_smol"):
        pd.testing.assert_frame_equal(pd.read_csv(root / "figures" / "gallery" / f"{name}.csv"), saved)
    seeds = saved.groupby("plan")["seeds"].first()
    assert (seeds[["full", "middle band", "last", "evenly spread"]] == 3).all() and len(seeds) == 12
    seen = saved[(saved["condition"] == "seen") & (saved["family"] == "all")].set_index("plan")["score"]
    assert seen["full"] >= seen["reference smol"] - 0.03
