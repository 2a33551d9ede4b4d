import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from probes.cli import main
from probes.config import SweepConfig
from tests.probes.conftest import Outcome, Photos

Sweep = Callable[..., Outcome]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SweepConfig]:
    """The settings with which a sweep would have started."""
    seen: list[SweepConfig] = []

    def record(config: SweepConfig, **options: object) -> None:
        seen.append(config)

    monkeypatch.setattr("probes.sweep.run_sweep", record)
    return seen


def test_help_names_every_option_of_the_issue(sweep: Sweep) -> None:
    shown = sweep("--help").out
    for option in [
        "model",
        "data",
        "images",
        "split",
        "target",
        "site",
        "layers",
        "tokens",
        "pool",
        "probe",
        "folds",
        "no-controls",
        "seed",
        "limit",
        "batch-size",
        "device",
        "dtype",
        "attn",
        "quantize",
        "device-map",
        "out",
        "overwrite",
        "dry-run",
        "config",
        "transfer",
        "preprocess",
        "skip-bad",
    ]:
        assert f"--{option}" in shown
    assert "probe-sweep show" in shown


EVERY_OPTION: dict[str, tuple[object, Callable[[SweepConfig], object]]] = {
    "model": ("here", lambda c: c.model.name),
    "revision": ("abc", lambda c: c.model.revision),
    "device": ("cuda:1", lambda c: c.model.device),
    "dtype": ("bfloat16", lambda c: c.model.dtype),
    "attn": ("eager", lambda c: c.model.attn),
    "quantize": ("8bit", lambda c: c.model.quantize),
    "device-map": ("auto", lambda c: c.model.device_map),
    "preprocess": ("hf", lambda c: c.data.preprocess),
    "data": ("my.jsonl", lambda c: c.data.spec),
    "images": ("pictures", lambda c: str(c.data.images)),
    "split": ("train", lambda c: c.data.split),
    "transfer": ("later", lambda c: c.data.transfer),
    "captions": ("captions.json", lambda c: str(c.data.captions)),
    "limit": (7, lambda c: c.data.limit),
    "transfer-limit": (3, lambda c: c.data.transfer_limit),
    "layers": ("0-3", lambda c: c.sites.layers),
    "tokens": ("last", lambda c: c.sites.tokens),
    "pool": ("max", lambda c: c.sites.pool),
    "store-dtype": ("float16", lambda c: c.sites.stored_as),
    "probe": ("ridge", lambda c: c.probing.probe),
    "folds": (4, lambda c: c.probing.folds),
    "seed": (9, lambda c: c.seed),
    "batch-size": (5, lambda c: c.batch_size),
    "out": ("elsewhere", lambda c: str(c.out)),
}


@pytest.mark.parametrize("option", EVERY_OPTION)
def test_option_reaches_the_sweep_from_line_and_file(option: str, asked: list[SweepConfig], tmp_path: Path) -> None:
    value, read = EVERY_OPTION[option]
    (tmp_path / "sweep.yaml").write_text(json.dumps({option: value}))
    for arguments in ([f"--{option}", str(value)], ["--config", str(tmp_path / "sweep.yaml")]):
        main(arguments)
        assert read(asked[-1]) == value
        assert read(SweepConfig()) != value


def test_flags_and_repeated_options_reach_the_sweep(asked: list[SweepConfig], sweep: Sweep) -> None:
    sweep(
        "run",
        "--no-controls",
        "--skip-bad",
        "--overwrite",
        "--dry-run",
        "--target",
        "a",
        "--target",
        "b",
        "--site",
        "z",
    )
    config = asked[-1]
    assert (config.probing.controls, config.data.skip_bad, config.overwrite, config.dry_run) == (
        False,
        True,
        True,
        True,
    )
    assert config.probing.targets == ("a", "b")
    assert config.sites.specs == ("z",)


def test_command_line_wins_over_the_file(asked: list[SweepConfig], sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("folds: 3\nseed: 5\ntarget: kind\nsite: [z, resid_post]\nskip-bad: true\n")
    sweep("--config", tmp_path / "sweep.yaml", "--folds", 4)
    config = asked[-1]
    assert (config.probing.folds, config.seed, config.data.skip_bad) == (4, 5, True)
    assert config.probing.targets == ("kind",)
    assert config.sites.specs == ("z", "resid_post")


def test_settings_of_the_manifest_hold_every_option_that_decides_results() -> None:
    assert SweepConfig().settings == json.loads(json.dumps(SweepConfig().settings))
    names = {name.replace("-", "_") for name in EVERY_OPTION} - {"out"}
    assert names <= SweepConfig().settings.keys()


def test_dry_run_prints_the_estimate_alone(sweep: Sweep, tmp_path: Path) -> None:
    outcome = sweep("--dry-run", "--limit", 30, "--target", "colour", "--folds", 2)
    assert outcome.code == 0
    assert "40 examples at 11 sites" in outcome.out
    assert not (tmp_path / "run").exists()


def test_photos_of_ones_own_go_through_and_show_prints_the_table_again(
    sweep: Sweep, photos: Photos, tmp_path: Path
) -> None:
    outcome = sweep(
        "--data", photos.table, "--images", photos.folder, "--target", "photo", "--target", "row:continuous",
        "--folds", 3, "--store-dtype", "float16",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    results = pd.read_csv(run / "results.csv")
    assert set(results["target"]) == {"photo", "row"}
    assert set(results[results["target"] == "row"]["metric"]) == {"r2"}
    best = results[(results["target"] == "photo") & (results["part"] == "vision_tower")]["lower"].max()
    assert best > 1 / 3  # even random features tell a temple from a flower
    assert str(run / "results.csv") in outcome.out
    with Image.open(run / "figures/score_by_layer.png") as picture:
        assert min(picture.size) > 300
    assert "<svg" in (run / "figures/score_by_layer.svg").read_text()
    again = sweep("show", run)
    assert again.code == 0
    assert outcome.out.endswith(again.out)  # behind the estimate


@pytest.mark.parametrize(
    "options",
    [
        ["--tokens", "last", "--pool", "none", "--site", "z", "--layers", "1"],
        ["--tokens", "question", "--pool", "max", "--site", "resid_post", "--attn", "eager"],
        ["--tokens", "image", "--pool", "box", "--site", "vision:q", "--preprocess", "hf"],
        ["--probe", "ridge", "--site", "projector:act", "--dtype", "bfloat16"],
        ["--probe", "mass-mean", "--site", "final_norm", "--tokens", "all"],
        ["--probe", "mlp", "--site", "vision:resid_post@1", "--transfer", "none"],
    ],
)
def test_options_run_and_are_told_in_the_table(sweep: Sweep, tmp_path: Path, options: list[str]) -> None:
    base = ["--limit", 40, "--transfer-limit", 10, "--target", "colour", "--folds", 2, "--no-controls"]
    outcome = sweep(*base, *options)
    assert outcome.code == 0, outcome.err
    results = pd.read_csv(tmp_path / "run/results.csv")
    told = dict(zip(options[::2], options[1::2], strict=True))
    assert set(results["pool"]) == {told.get("--pool", "mean")}
    assert set(results["tokens"]) == {told.get("--tokens", "object")}
    assert set(results["probe"]) == {told.get("--probe", "logistic").replace("-", "_")}
    assert set(results["split"]) == ({"cv"} if "--transfer" in told else {"cv", "unseen"})
    assert results["control"].isna().all()


def test_changed_settings_are_refused_and_overwrite_replaces(sweep: Sweep, tmp_path: Path) -> None:
    base = ["--limit", 40, "--transfer-limit", 10, "--target", "colour", "--no-controls", "--site", "projector:out"]
    assert sweep(*base, "--folds", 2).code == 0
    refused = sweep(*base, "--folds", 3)
    assert refused.code == 2
    assert "settings.folds was 2, is 3" in refused.err
    assert sweep(*base, "--folds", 3, "--overwrite").code == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["settings"]["folds"] == 3
    assert {"command", "model", "data", "template", "layer_convention", "versions", "seconds"} <= manifest.keys()


def test_table_is_quiet_where_nobody_watches(sweep: Sweep, tmp_path: Path) -> None:
    outcome = sweep("--limit", 40, "--target", "colour", "--no-controls", "--folds", 2, "--site", "projector:out")
    assert outcome.err == ""  # no progress bar
    assert "\x1b" not in outcome.out
