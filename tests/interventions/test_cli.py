import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from interventions.cli import main
from interventions.config import InterventionOptions, PatchConfig
from interventions.plan.options import OPERATIONS, OPS
from tests.interventions.conftest import Outcome, PairFile

Sweep = Callable[..., Outcome]


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PatchConfig]:
    """The settings with which a sweep would have started."""
    seen: list[PatchConfig] = []

    def record(config: PatchConfig, **options: object) -> None:
        seen.append(config)

    monkeypatch.setattr("interventions.sweep.run_patch_sweep", record)
    return seen


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr("records.open_model.load", fail)


def refused(outcome: Outcome, *phrases: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err  # one sentence, no traceback
    assert outcome.err.startswith("patch-sweep: ")
    for phrase in phrases:
        assert phrase in outcome.err


# option -> the rest of the line it needs, its value, and where it arrives
EVERY_OPTION: dict[str, tuple[list[str], object, Callable[[PatchConfig], object]]] = {
    "model": ([], "here", lambda c: c.model.name),
    "revision": ([], "abc", lambda c: c.model.revision),
    "device": ([], "cuda:1", lambda c: c.model.device),
    "dtype": ([], "bfloat16", lambda c: c.model.dtype),
    "attn": ([], "eager", lambda c: c.model.attn),
    "quantize": ([], "4bit", lambda c: c.model.quantize),
    "device-map": ([], "auto", lambda c: c.model.device_map),
    "preprocess": ([], "hf", lambda c: c.pairs.preprocess),
    "data": ([], "my.jsonl", lambda c: c.pairs.spec),
    "images": ([], "pictures", lambda c: str(c.pairs.images)),
    "pair": ([], "kind", lambda c: c.pairs.attribute),
    "split": ([], "train", lambda c: c.pairs.split),
    "limit": ([], 7, lambda c: c.pairs.limit),
    "op": ([], "ablate", lambda c: c.plan.op),
    "layers": ([], "0-3", lambda c: c.plan.layers),
    "window": ([], 3, lambda c: c.plan.window),
    "heads": (["--site", "z"], "all", lambda c: c.plan.heads),
    "new-tokens": (["--metric", "cider"], 20, lambda c: c.new_tokens),
    "attention": (
        ["--op", "knockout", "--tokens", "image->last", "--heads", "all"],
        2,
        lambda c: c.intervention.attention,
    ),
    "engine": ([], "full", lambda c: c.plan.engine),
    "corruption": ([], "blank", lambda c: c.plan.corruption.kind),
    "noise-scale": (["--corruption", "noise"], 2.0, lambda c: c.plan.corruption.scale),
    "direction": ([], "noise", lambda c: c.plan.options.direction),  # type: ignore[union-attr]
    "ablation": (["--op", "ablate"], "zero", lambda c: c.plan.options.kind),  # type: ignore[union-attr]
    "steer-file": (["--op", "steer"], "d.safetensors", lambda c: str(c.intervention.steer_file)),
    "steer-name": (["--op", "steer"], "up", lambda c: c.plan.options.direction),  # type: ignore[union-attr]
    "alpha": (["--op", "steer"], -2.0, lambda c: c.plan.options.alpha),  # type: ignore[union-attr]
    "unit": (["--op", "steer"], "absolute", lambda c: c.plan.options.unit),  # type: ignore[union-attr]
    "donor": (["--op", "transplant"], "there", lambda c: c.plan.options.donor),  # type: ignore[union-attr]
    "seed": ([], 9, lambda c: c.seed),
    "batch-size": ([], 5, lambda c: c.batch_size),
    "out": ([], "elsewhere", lambda c: str(c.out)),
}
FLAGS: dict[str, tuple[list[str], Callable[[PatchConfig], object]]] = {
    "overwrite": ([], lambda c: c.overwrite),
    "dry-run": ([], lambda c: c.dry_run),
    "capital-answers": (["--data", "benchmark:pope=pope"], lambda c: c.pairs.capital_answers),
    "hidden": (["--op", "skip"], lambda c: c.plan.options.hidden),  # type: ignore[union-attr]
    "with-head": (["--op", "transplant"], lambda c: c.plan.options.head),  # type: ignore[union-attr]
    "with-projector": (["--op", "transplant"], lambda c: c.plan.options.projector),  # type: ignore[union-attr]
}
REPEATED: dict[str, tuple[list[str], tuple[object, object], Callable[[PatchConfig], object]]] = {
    "site": ([], ("z", "mlp_out"), lambda c: c.plan.sites),
    "tokens": ([], ("image", "patch(1,2)"), lambda c: c.plan.tokens),
    "metric": ([], ("kl", "log_prob"), lambda c: c.plan.metrics),
    "noise-seed": (["--corruption", "noise"], (3, 4), lambda c: c.plan.corruption.seeds),
}


def test_help_names_every_option(sweep: Sweep) -> None:
    shown = sweep("--help").out
    for option in [*EVERY_OPTION, *FLAGS, *REPEATED, "from", "to", "config"]:
        assert f"--{option}" in shown
    assert "patch-sweep show" in shown


def call(arguments: list[str], asked: list[PatchConfig]) -> PatchConfig:
    main(arguments)
    return asked[-1]


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_option_reaches_the_sweep_from_line_and_file(option: str, asked: list[PatchConfig], tmp_path: Path) -> None:
    others, value, read = EVERY_OPTION[option]
    (tmp_path / "sweep.yaml").write_text(json.dumps({option: value}))
    assert read(call([*others, f"--{option}", str(value)], asked)) == value
    assert read(call([*others, "--config", str(tmp_path / "sweep.yaml")], asked)) == value
    assert read(call(others, asked)) != value


@pytest.mark.parametrize("flag", FLAGS)
def test_flag_reaches_the_sweep(flag: str, asked: list[PatchConfig]) -> None:
    others, read = FLAGS[flag]
    assert read(call([*others, f"--{flag}"], asked)) is True
    assert read(call(others, asked)) is False


@pytest.mark.parametrize("option", REPEATED)
def test_repeated_option_reaches_the_sweep_in_order(option: str, asked: list[PatchConfig], tmp_path: Path) -> None:
    others, values, read = REPEATED[option]
    given = [part for value in values for part in (f"--{option}", str(value))]
    assert read(call([*others, *given], asked)) == values
    (tmp_path / "sweep.yaml").write_text(json.dumps({option: values[0]}))
    assert read(call([*others, "--config", str(tmp_path / "sweep.yaml")], asked)) == values[:1]


def test_every_source_is_cut_off_from_every_target(asked: list[PatchConfig]) -> None:
    line = ["--op", "knockout", "--from", "image", "--from", "object", "--to", "question", "--to", "last"]
    flows = ("image->question", "image->last", "object->question", "object->last")
    assert call(line, asked).plan.tokens == flows
    assert call(["--op", "knockout", "--tokens", "image->last"], asked).plan.tokens == ("image->last",)


@pytest.mark.parametrize("op", OPS)
def test_operation_alone_means_its_defaults(op: str, asked: list[PatchConfig]) -> None:
    plan = call(["--op", op], asked).plan
    assert (plan.sites, plan.tokens, plan.window) == OPERATIONS[op][1:4]  # type: ignore[index]
    assert plan.metrics == (("logit_difference",) if op == "attribute" else ("logit_difference", "accuracy"))


def test_sites_before_the_language_model_are_patched_at_image_tokens(asked: list[PatchConfig]) -> None:
    assert call(["--site", "vision:resid_post"], asked).plan.tokens == ("image",)


def test_settings_of_the_manifest_hold_every_option_that_decides_results() -> None:
    settings = PatchConfig(InterventionOptions("ablate")).settings
    assert settings == json.loads(json.dumps(settings))
    names = {name.replace("-", "_") for name in (*EVERY_OPTION, *FLAGS, *REPEATED)}
    assert names - {"out", "overwrite", "dry_run"} | {"from", "to"} == settings.keys()
    assert (settings["tokens"], settings["ablation"]) == (["image", "question", "last"], "mean")


def test_command_line_wins_over_the_file(asked: list[PatchConfig], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("seed: 5\nsite: z\nbatch-size: 3\n")
    config = call(["--config", str(tmp_path / "sweep.yaml"), "--seed", "4"], asked)
    assert (config.seed, config.plan.sites, config.batch_size) == (4, ("z",), 3)


def test_pairs_of_ones_own_go_through_and_show_prints_the_table_again(
    sweep: Sweep, pair_file: PairFile, tmp_path: Path
) -> None:
    outcome = sweep("--data", pair_file.table, "--images", pair_file.folder, "--layers", "0,2", "--metric", "log_prob")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    results = pd.read_csv(run / "results.csv")
    assert set(results["n"]) == {4}
    assert str(run / "results.csv") in outcome.out
    assert str(run / "figures/token_map.png") in outcome.out
    assert "<svg" in (run / "figures/token_map.svg").read_text()
    again = sweep("show", run)
    assert again.code == 0
    assert outcome.out.endswith(again.out)  # behind the estimate
    assert outcome.err == ""  # no progress bar where nobody watches
    assert "\x1b" not in outcome.out


def test_dry_run_prints_the_estimate_alone(sweep: Sweep, tmp_path: Path) -> None:
    outcome = sweep("--dry-run", "--limit", 3)
    assert outcome.code == 0
    assert outcome.out.startswith("3 pairs, 9 cells each")
    assert outcome.out.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_attribution_tells_its_error(sweep: Sweep) -> None:
    outcome = sweep("--op", "attribute", "--limit", 3, "--dtype", "float32", "--attn", "eager", "--preprocess", "hf")
    assert outcome.code == 0, outcome.err
    assert "against exact patching, logit difference: correlation" in outcome.out


def test_changed_settings_are_refused_and_overwrite_replaces(sweep: Sweep, tmp_path: Path) -> None:
    base = ["--limit", 2, "--layers", "1"]
    assert sweep(*base).code == 0
    refused(sweep(*base, "--tokens", "image"), "settings.tokens was")
    assert sweep(*base, "--tokens", "image", "--overwrite").code == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["kind"] == "laccolith patch-sweep"
    assert manifest["settings"]["tokens"] == ["image"]
    assert {"command", "model", "data", "template", "layer_convention", "versions", "seconds"} <= manifest.keys()
    probe = {**manifest, "kind": "laccolith probe-sweep"}
    (tmp_path / "run/manifest.json").write_text(json.dumps(probe))
    refused(sweep(*base, "--overwrite"), "must be a folder of patch-sweep")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["--batch-size", 0], ["batch-size must be >= 1"]),
        (["--seed", -1], ["seed must be >= 0"]),
        (["--limit", 0], ["limit must be >= 1"]),
        (["--device", "tpu"], ["device must be"]),
        (["--pair", "mood"], ["'mood'", "kind, colour"]),
        (["--split", "nowhere"], ["'nowhere'"]),
        (["--data", "nothing.jsonl"], ["nothing.jsonl"]),
        (["--window", "2"], ["odd number", "2"]),
        (["--window", "wide"], ["'wide'", "up-to"]),
        (["--metric", "loss"], ["'loss'", "logit_difference"]),
        (["--op", "attribute", "--metric", "accuracy"], ["gradient"]),
        (["--tokens", "image->last"], ["one group", "image->last"]),
        (["--tokens", "noun"], ["'noun'"]),
        (["--op", "knockout", "--tokens", "image"], ["source->target"]),
        (["--op", "knockout", "--from", "image"], ["from must go with to"]),
        (["--heads", "x"], ["heads must be like"]),
        (["--op", "skip", "--heads", "all"], ["heads must not be given"]),
        (["--op", "steer"], ["steer-file must be given"]),
        (["--op", "steer", "--steer-file", "none.safetensors"], ["none.safetensors"]),
        (["--ablation", "zero"], ["ablation must go with op ablate", "'patch'"]),
        (["--op", "knockout", "--direction", "noise"], ["direction must go with op patch or attribute"]),
        (["--hidden"], ["hidden must go with op skip"]),
        (["--ablation", "mean"], ["ablation must go with op ablate", "'patch'"]),  # the default, but without effect
        (["--noise-scale=3.0"], ["noise-scale and noise-seed must go with corruption noise", "'pair'"]),
        (["--with-head"], ["with-head must go with op transplant"]),
        (["--noise-scale", "2"], ["must go with corruption noise"]),
        (["--corruption", "noise", "--noise-scale", "-1"], ["scale must be a positive"]),
        (["--op", "transplant", "--tokens", "image"], ["tokens must not be given"]),
    ],
)
def test_option_that_makes_no_sense_is_refused_before_a_model_is_loaded(
    sweep: Sweep, tmp_path: Path, arguments: list[object], phrases: list[str]
) -> None:
    refused(sweep(*arguments), *phrases)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["--layers", "0-7"], ["[0, 3)", "7"]),
        (["--site", "blocks.3.hook_resid_post"], ["[0, 3)", "blocks.3"]),
        (["--site", "hidden"], ["'hidden'", "resid_post"]),
        (["--site", "pattern"], ["knockout"]),
        (["--site", "z", "--heads", "6"], ["[0, 6)", "6"]),
        (["--heads", "all"], ["heads must go with q, k, v or z"]),
        (["--site", "vision:resid_post", "--tokens", "last"], ["image tokens"]),
        (["--tokens", "patch(9,9)"], ["patch must be in the 4 x 4 grid"]),
        (["--op", "knockout", "--from", "image", "--to", "pos(-1000)"], ["pos must be in"]),
        (["--op", "transplant", "--donor", "nobody"], ["nobody"]),
    ],
)
def test_what_the_model_lacks_is_refused_before_the_folder_is_made(
    sweep: Sweep, tmp_path: Path, arguments: list[object], phrases: list[str]
) -> None:
    refused(sweep("--limit", 2, *arguments), *phrases)
    assert not (tmp_path / "run").exists()


def test_own_pairs_without_boxes_have_no_object(sweep: Sweep, pair_file: PairFile, tmp_path: Path) -> None:
    refused(sweep("--data", pair_file.table, "--tokens", "object"), "focus box", "'p0'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["smoll", "random:llava-1.5-70b", "./nowhere"])
def test_unknown_model_is_refused(sweep: Sweep, tmp_path: Path, name: str) -> None:
    refused(sweep("--limit", 2, model=name), name)
    assert not (tmp_path / "run").exists()


def test_values_that_are_not_finite_name_metric_and_pair(
    sweep: Sweep, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights[next(key for key in weights if "layers.1.mlp.down_proj" in key)].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    from models.loading.load import load

    monkeypatch.setattr("records.open_model.load", lambda *a, **k: load(*a, **{**k, "validate": False}))
    refused(sweep("--limit", 2, model=folder), "finite", "logit_difference of 'test-0-0/colour'")
    assert not (tmp_path / "run/results.parquet").exists()


def test_disk_that_is_too_small_is_refused_before_the_run(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(2**20, 0, 2**20))
    refused(sweep("--limit", 2), "must fit on the disk")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_model")
def test_output_folder_with_foreign_files_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(sweep("--overwrite"), "thesis.tex")
    (tmp_path / "file").write_text("")
    refused(sweep("--out", tmp_path / "file"), "must be a folder")


def test_show_of_what_is_no_finished_run_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    refused(sweep("show", tmp_path), "patch-sweep wrote")
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "laccolith patch-sweep"}))
    refused(sweep("show", tmp_path), "must be finished")


@pytest.mark.parametrize(("arguments", "phrase"), [(["--opp", "patch"], "--opp"), (["--pair", "mood"], "'mood'")])
def test_the_process_itself_ends_with_status_2(tmp_path: Path, arguments: list[str], phrase: str) -> None:
    command: list[Any] = [sys.executable, "-m", "interventions.cli", *arguments, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 2
    assert phrase in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
