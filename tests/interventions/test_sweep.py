import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.calibration import cell_table, cells_trial
from interventions.cell_statistics import COLUMNS, KEYS, list_values, summarise_cells
from interventions.config import InterventionOptions, PairOptions, PatchConfig
from interventions.metrics import find_readout, measure
from interventions.pairs import load_pairs
from interventions.plan.cells import CellSpec
from interventions.plan.options import (
    AblateOptions,
    Corruption,
    PatchOptions,
    SkipOptions,
    SteerOptions,
    TransplantOptions,
)
from interventions.report_table import render_summary, summarise
from interventions.sweep import PatchEstimate, run_patch_sweep
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from records.html import table_html
from records.intervals import wilson
from records.options import ModelOptions
from records.resampling import adjust_p
from records.run import FinishedRun

ISSUE_COLUMNS = (
    "op", "site", "layer", "window", "tokens", "head", "metric", "value", "lower", "upper", "clean", "corrupt",
    "recovered", "n", "n_undefined",
)  # fmt: skip
METRICS = ("logit_difference", "log_prob", "probability", "kl", "accuracy")


def config(checkpoint: Path, out: Path, op: str = "patch", *, limit: int = 6, **changes: object) -> PatchConfig:
    """A sweep of the tiny model; fields of ``PatchConfig`` go there, the others to ``InterventionOptions``."""
    of_settings = {"seed", "batch_size", "corruption", "overwrite", "dry_run"}
    settings = {key: value for key, value in changes.items() if key in of_settings}
    intervention = {key: value for key, value in changes.items() if key not in of_settings}
    return PatchConfig(
        InterventionOptions(op, **intervention),  # type: ignore[arg-type]
        model=ModelOptions(name=str(checkpoint)),
        pairs=PairOptions(limit=limit),
        out=out,
        **{"batch_size": 4, **settings},  # type: ignore[arg-type]
    )


def done(settings: PatchConfig, *, drawn: bool = False) -> FinishedRun:
    """The finished run; ``drawn`` with its figures, which take longer than the run."""
    with nullcontext() if drawn else patch("figures.drawn_figures", return_value=()):
        finished = run_patch_sweep(settings)
    assert isinstance(finished, FinishedRun)
    return finished


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return done(config(checkpoint, tmp_path_factory.mktemp("sweep") / "run", metrics=METRICS))


def test_a_model_in_memory_gives_the_same_and_is_left_as_it_was(
    finished: FinishedRun, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = load(checkpoint)
    before, described = there.weight_hash, str(there.model)
    monkeypatch.setattr("records.open_model.load", None)
    with patch("figures.drawn_figures", return_value=()):
        again = run_patch_sweep(config(checkpoint, tmp_path / "run", metrics=METRICS), llava=there)
    assert isinstance(again, FinishedRun)
    pd.testing.assert_frame_equal(again.results, finished.results)
    assert (there.weight_hash, str(there.model)) == (before, described)


def test_results_have_one_row_for_each_cell_and_metric(finished: FinishedRun) -> None:
    results = finished.results
    assert list(results.columns) == list(COLUMNS)
    assert set(ISSUE_COLUMNS) | {"p", "p_adjusted"} <= set(results.columns)
    assert not results.duplicated([*KEYS, "metric"]).any()
    assert len(results) == 3 * 3 * 5  # token groups, layers, metrics
    assert set(results["n"]) == {6}
    csv = pd.read_csv(finished.folder / "results.csv")
    np.testing.assert_allclose(csv["value"], results["value"])


def test_whole_image_at_the_bottom_recovers_all_and_at_the_top_nothing(finished: FinishedRun) -> None:
    image = finished.results.query("tokens == 'image' and metric == 'logit_difference'").set_index("layer")
    np.testing.assert_allclose(image.loc[0, "recovered"], 1.0, atol=1e-3)  # float32, differences of order 0.01
    np.testing.assert_allclose(image.loc[0, ["value", "clean"]].diff().iloc[1], 0.0, atol=1e-5)
    middle = finished.results.query("metric == 'logit_difference' and tokens == 'last'").set_index("layer")["recovered"]
    assert abs(middle.loc[0]) < 1e-3  # the last word is the same in both runs
    assert middle.loc[2] > 0.1  # and has seen the picture later


def test_kl_of_the_clean_run_is_zero_and_recovered_with_it(finished: FinishedRun) -> None:
    kl = finished.results.query("metric == 'kl' and tokens == 'image' and layer == 0").iloc[0]
    assert kl["corrupt"] > 1e-6
    assert abs(kl["clean"]) < 1e-7
    assert abs(kl["value"]) < 1e-6


def test_clean_and_corrupt_levels_are_those_of_plain_forwards(
    checkpoint: Path, llava: Llava, finished: FinishedRun
) -> None:
    from interventions.metrics import answer_tokens
    from tasks.prompts import vicuna_v1

    pairs = load_pairs(
        PairOptions(limit=6), seed=0, size=28, length=lambda text: len(answer_tokens(llava, vicuna_v1("?"), text))
    ).pairs
    levels = {}
    for name in ("clean", "corrupt"):
        inputs = prepare(llava, [getattr(pair, name) for pair in pairs], answers=True)
        readout = find_readout(llava, inputs, [pair.foil for pair in pairs])
        with torch.no_grad():
            logits = llava.model(**inputs.model_kwargs()).logits.float()
        at = logits[torch.arange(6)[:, None], readout.columns.clamp(min=0)]
        levels[name] = measure(at, readout, ("logit_difference", "log_prob", "probability")).mean(1)
    assert not torch.allclose(levels["clean"], levels["corrupt"])
    for number, metric in enumerate(("logit_difference", "log_prob", "probability")):
        row = finished.results[finished.results["metric"] == metric].iloc[0]
        for name, level in levels.items():
            np.testing.assert_allclose(row[name], float(level[number]), rtol=1e-4, atol=1e-6)


def test_values_by_example_make_up_the_table(finished: FinishedRun) -> None:
    values = pd.read_parquet(finished.folder / "values.parquet")
    assert len(values) == len(finished.results) * 6
    means = values.assign(head="").groupby(["site", "tokens", "metric"], observed=True)["value"].mean()
    for row in finished.results.to_dict("records"):
        np.testing.assert_allclose(means[row["site"], row["tokens"], row["metric"]], row["value"], rtol=1e-5, atol=1e-9)
    undefined = values.assign(missing=values["recovered"].isna()).groupby(["site", "tokens", "metric"], observed=True)
    counted = finished.results.set_index(["site", "tokens", "metric"])["n_undefined"]
    assert undefined["missing"].sum().to_dict() == counted.to_dict()
    assert counted.max() == 6  # accuracy of a random model is 0 in both runs
    pairs = pd.read_parquet(finished.folder / "pairs.parquet")
    assert list(pairs["id"]) == list(dict.fromkeys(values["id"]))
    assert (pairs["answer"] != pairs["foil"]).all()


def test_intervals_hold_the_value_and_p_is_adjusted_for_all_cells_of_a_metric(finished: FinishedRun) -> None:
    results = finished.results
    known = results[results["lower"].notna()]  # equal values in all pairs, as KL at the clean run, have no interval
    assert len(known) > len(results) / 2
    assert ((known["lower"] <= known["value"] + 1e-9) & (known["value"] <= known["upper"] + 1e-9)).all()
    assert (known["lower"] < known["upper"]).all()
    assert (results["p_max"] >= results["p"] - 1e-12).all()
    for _, group in results.groupby("metric"):
        np.testing.assert_allclose(group["p_adjusted"], adjust_p(group["p"].to_numpy(dtype=float)))
    tried = results["p"] * 2**6  # six pairs, all signs tried; the observed ones and their mirror count at least
    assert (tried == tried.round()).all() and tried.min() >= 2 and tried.min() < tried.max()


def test_undefined_fractions_are_empty_and_counted(finished: FinishedRun) -> None:
    accuracy = finished.results[finished.results["metric"] == "accuracy"]
    assert set(accuracy["n_undefined"]) == {6}
    assert accuracy[["recovered", "recovered_lower", "recovered_upper"]].isna().all(axis=None)


def close(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """The same cells with the same values, to what float32 leaves of logits."""
    assert list(a["site"] + a["tokens"] + a["window"]) == list(b["site"] + b["tokens"] + b["window"])
    for column in ("value", "clean", "corrupt"):
        np.testing.assert_allclose(a[column], b[column], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("changes", [{"engine": "full"}, {"batch_size": 1}, {"batch_size": 6}])
def test_engine_and_batch_size_do_not_matter(
    checkpoint: Path, finished: FinishedRun, tmp_path: Path, changes: dict[str, object]
) -> None:
    close(done(config(checkpoint, tmp_path / "run", metrics=METRICS, **changes)).results, finished.results)


def test_seed_makes_other_pairs(checkpoint: Path, finished: FinishedRun, tmp_path: Path) -> None:
    other = done(config(checkpoint, tmp_path / "run", metrics=METRICS, layers="0", seed=5))
    assert other.results["clean"].iloc[0] != finished.results["clean"].iloc[0]


OPERATIONS: dict[str, tuple[dict[str, object], str, set[str]]] = {
    # what is asked for, the run that is changed, and the tokens in the table
    "patch": (
        {"patch": PatchOptions("noise"), "sites": ("z",), "tokens": ("last",), "heads": "all"},
        "clean",
        {"last"},
    ),
    "knockout": ({"sources": ("image",), "targets": ("question", "last")}, "clean", {"image->question", "image->last"}),
    "skip": ({"skip": SkipOptions(hidden=True)}, "clean", {"image"}),
    "ablate": ({"ablate": AblateOptions("resample"), "sites": ("vision:resid_post",)}, "clean", {"image"}),
    "attribute": ({}, "corrupt", {"image", "question", "last"}),
}


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_operation_writes_its_table_and_figures(checkpoint: Path, tmp_path: Path, op: str) -> None:
    asked, unchanged, tokens = OPERATIONS[op]
    found = done(config(checkpoint, tmp_path / "run", op, limit=3, **asked), drawn=True)
    results = found.results
    assert set(results["op"]) == {op}
    assert set(results["unchanged"]) == {unchanged}
    assert set(results["tokens"]) == tokens
    assert (results["value"] != results[unchanged]).any()  # something was changed
    assert found.figures
    assert all(png.is_file() and png.with_suffix(".svg").is_file() for png in found.figures)
    assert summarise(results)["n_cells"].sum() == len(results)


def test_ablations_differ_by_what_takes_the_place(checkpoint: Path, tmp_path: Path) -> None:
    values = {}
    for kind in ("zero", "mean"):
        asked = {"ablate": AblateOptions(kind), "tokens": ("image",)}  # type: ignore[arg-type]
        found = done(config(checkpoint, tmp_path / kind, "ablate", limit=3, **asked)).results
        assert set(found["name"]) == {"attn_out", "mlp_out"}
        values[kind] = found[found["metric"] == "logit_difference"]["value"]
        assert (values[kind] != found["clean"].iloc[0])[found["layer"] < 2].all()  # nothing follows the last block
    assert not np.allclose(values["zero"], values["mean"], rtol=1e-3)


def test_windows_and_layers_reach_the_cells(checkpoint: Path, tmp_path: Path) -> None:
    found = done(config(checkpoint, tmp_path / "a", "knockout", limit=2, window="3", layers="0,1"))
    assert list(dict.fromkeys(found.results["window"])) == ["0-1", "0-2"]
    found = done(config(checkpoint, tmp_path / "b", "skip", limit=2))
    assert list(dict.fromkeys(found.results["window"])) == ["0-2", "1-2", "2"]


def test_steering_adds_the_direction_of_the_file(checkpoint: Path, llava: Llava, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "directions.safetensors"
    save_file({"away": torch.randn(llava.d_model, generator=generator)}, path)
    values = {}
    for alpha in (1e-6, 0.5, -0.5):
        asked = {"steer_file": path, "steer": SteerOptions("away", alpha)}
        found = done(config(checkpoint, tmp_path / f"{alpha}", "steer", limit=2, layers="1", **asked))
        row = found.results.iloc[0]
        values[alpha] = row["value"] - row["clean"]
    assert abs(values[1e-6]) < 1e-4
    assert values[0.5] * values[-0.5] < 0  # there and back


def test_attribution_is_compared_with_exact_patching(checkpoint: Path, tmp_path: Path) -> None:
    found = done(config(checkpoint, tmp_path / "run", "attribute", limit=6))
    exact = done(config(checkpoint, tmp_path / "exact", "patch", limit=6, metrics=("logit_difference",)))
    errors = pd.read_csv(tmp_path / "run/attribution_error.csv")
    assert list(errors["metric"]) == ["logit_difference"]
    assert errors["n"].iloc[0] == 4 * 9  # the first batch
    both = found.results["value"] - found.results["corrupt"], exact.results["value"] - exact.results["corrupt"]
    assert np.corrcoef(*both)[0, 1] > 0.9
    assert errors["correlation"].iloc[0] > 0.8
    assert not np.allclose(*both, rtol=1e-3)  # an estimate, not the patch itself


def test_transplant_goes_from_recipient_to_donor(checkpoint: Path, tuned: Path, tmp_path: Path) -> None:
    asked = {"transplant": TransplantOptions(str(tuned), head=True), "metrics": ("log_prob", "kl")}
    settings = config(checkpoint, tmp_path / "run", "transplant", limit=3, **asked)
    found = done(settings, drawn=True)
    assert list(dict.fromkeys(found.results["window"])) == ["0", "0-1", "0-2"]
    assert [png.stem for png in found.figures] == ["curves"]
    whole = found.results[found.results["window"] == "0-2"]
    np.testing.assert_allclose(whole["recovered"], 1.0, rtol=1e-4)  # every weight that differs has come
    assert ((found.results[found.results["window"] == "0"]["recovered"] - 1).abs() > 0.05).all()
    manifest = (tmp_path / "run/manifest.json").read_text()
    assert '"donor"' in manifest


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_noise_is_averaged_over_its_seeds(checkpoint: Path, tmp_path: Path, direction: str) -> None:
    values = {}
    for seeds in ((0,), (1,), (0, 1)):
        noise = Corruption("noise", 3.0, seeds)
        found = done(
            config(
                checkpoint, tmp_path / str(seeds), limit=2, layers="1", tokens=("image",), corruption=noise,
                metrics=("logit_difference",), patch=PatchOptions(direction),
            )
        )  # fmt: skip
        values[seeds] = found.results[["value", "corrupt", "clean"]].iloc[0]
    mean = (values[0,] + values[1,]) / 2
    np.testing.assert_allclose(values[0, 1].astype(float), mean.astype(float), rtol=1e-4, atol=1e-6)
    assert values[0,]["corrupt"] != values[1,]["corrupt"]
    assert values[0,]["clean"] == values[1,]["clean"]


def test_blank_picture_is_another_corrupt_run(checkpoint: Path, finished: FinishedRun, tmp_path: Path) -> None:
    found = done(config(checkpoint, tmp_path / "run", layers="0", metrics=METRICS, corruption=Corruption("blank")))
    assert found.results["clean"].iloc[0] == pytest.approx(finished.results["clean"].iloc[0], abs=1e-5)
    assert found.results["corrupt"].iloc[0] != pytest.approx(finished.results["corrupt"].iloc[0], abs=1e-4)


def test_maps_of_single_pairs_are_painted_on_their_own_pictures(checkpoint: Path, llava: Llava, tmp_path: Path) -> None:
    from PIL import Image

    found = done(config(checkpoint, tmp_path / "run", limit=2, tokens=("patches",), layers="1"), drawn=True)
    assert found.results["tokens"].nunique() == 16
    assert [png.stem for png in found.figures] == ["patch_map", "patch_map_0", "patch_map_1"]
    pairs = load_pairs(PairOptions(limit=2), seed=0, size=28).pairs
    for name, pair in (("picture.png", pairs[0]), ("pictures/0.png", pairs[0]), ("pictures/1.png", pairs[1])):
        with Image.open(found.folder / name) as picture:
            shown = np.asarray(picture, dtype=float)
        own = np.asarray(pair.clean.pictures[0].open(), dtype=float)
        np.testing.assert_allclose(shown, own, atol=1.0)
    assert not (done(config(checkpoint, tmp_path / "groups", limit=2, layers="1")).folder / "pictures").exists()


def test_dry_run_estimates_and_writes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    estimate = run_patch_sweep(config(checkpoint, tmp_path / "run", dry_run=True))
    assert isinstance(estimate, PatchEstimate)
    assert (estimate.n_pairs, estimate.n_cells) == (6, 9)
    assert "6 pairs, 9 cells each" in str(estimate)
    assert not (tmp_path / "run").exists()
    full = run_patch_sweep(config(checkpoint, tmp_path / "run", dry_run=True, engine="full"))
    assert isinstance(full, PatchEstimate)
    assert full.seconds > estimate.seconds  # nine more runs of each pair


def test_second_run_finds_everything_done(
    checkpoint: Path, finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("what is on the disk was computed again")

    before = files(finished.folder)
    monkeypatch.setattr("interventions.sweep.run_batch", fail)
    monkeypatch.setattr("interventions.sweep.collect_statistics", fail)
    monkeypatch.setattr("interventions.sweep.summarise_cells", fail)
    done(config(checkpoint, finished.folder, metrics=METRICS))
    assert files(finished.folder) == before


def test_batch_that_is_not_whole_is_run_again(checkpoint: Path, finished: FinishedRun, tmp_path: Path) -> None:
    run = done(config(checkpoint, tmp_path / "run", metrics=METRICS)).folder
    before = files(run)
    for name in ("results.parquet", "cells/00001.safetensors"):
        (run / name).write_bytes((run / name).read_bytes()[:-5])
    (run / "results.parquet").unlink()
    done(config(checkpoint, run, metrics=METRICS))
    assert files(run) == before


def files(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal between equal runs: all but locks, the order of checksums and the clock."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}
    del found["manifest.json"]
    return found


def launch(checkpoint: Path, out: Path, *command: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [
        *(command or (sys.executable,)), "-m", "interventions.cli", "--limit", "60", "--batch-size", "2",
        "--model", str(checkpoint), "--out", str(out),
    ]  # fmt: skip
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "run"
    process = launch(checkpoint, out)
    assert process.wait() == 0, process.communicate()[1].decode()
    return files(out)


def test_run_that_was_killed_ends_with_the_same_bytes(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = launch(checkpoint, out)
    while not list(out.glob("cells/00000.safetensors")):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(list(out.glob("cells/*.safetensors"))) < 30
    assert not (out / "results.parquet").exists()
    again = launch(checkpoint, out)
    assert again.wait() == 0, again.communicate()[1].decode()
    assert files(out) == undisturbed


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    process = launch(
        checkpoint, tmp_path / "run", sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
        "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0",
    )  # fmt: skip
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error
    assert files(tmp_path / "run") == undisturbed


def made_up(
    value: Callable[[torch.Tensor], torch.Tensor], n: int = 40, *, unmoved: float = 0.0
) -> tuple[pd.DataFrame, torch.Tensor]:
    """A table of two cells: one without effect (up to ``unmoved``), one as ``value`` says of the clean level."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, n, generator=generator) + 3
    corrupt = clean - 2 * torch.rand(1, n, generator=generator)
    specs = [CellSpec("patch", f"blocks.{i}.hook_resid_pre", i, str(i), "image") for i in range(2)]
    values = torch.stack([corrupt + unmoved, value(clean)])
    table = summarise_cells(
        specs, ["log_prob"], values, clean, corrupt, model="m", unchanged="corrupt", undefined_below=1e-3, seed=0
    )
    return table, clean - corrupt


def test_planted_effect_is_found_and_its_absence_too() -> None:
    table, _ = made_up(lambda clean: clean)
    assert table["recovered"].tolist() == pytest.approx([0.0, 1.0])
    assert table["recovered_lower"].isna().all()  # all pairs are equal, which says nothing of how they vary
    assert table["p_max"].tolist() == [1.0, 1e-4]
    assert table["best_share"].tolist() == [0.0, 1.0]
    assert table["p"].tolist() == [1.0, 1e-4]
    assert table["head"].isna().all()


def test_on_noise_no_cell_is_named_and_a_planted_one_is_with_its_effect_corrected() -> None:
    found = [cells_trial((20, 0.0), seed, "noise") for seed in range(40)]
    assert sum(trial["found"] for trial in found) <= 6  # 40 at 5 %: three standard errors are 4
    assert all(cells_trial((20, 0.5), seed, "planted")["right"] for seed in range(5))
    table = cell_table(20, 0.5, np.random.default_rng(0), seed=0)
    row = summarise(table).iloc[0]
    assert row["effect"] < table["recovered"].max()  # the best of thirty owes something to luck
    assert row["effect_lower"] < 0.5 < row["effect_upper"]
    noise = summarise(cell_table(20, 0.0, np.random.default_rng(0), seed=0)).iloc[0]
    assert not noise["found"]
    assert noise[["layer", "effect", "effect_lower", "value"]].isna().all()
    shown = table_html(render_summary(cell_table(20, 0.0, np.random.default_rng(0), seed=0)))
    assert ">none</td>" in shown


def test_effects_that_are_named_by_luck_have_intervals_that_reach_the_truth() -> None:
    found = pd.DataFrame([cells_trial((10, 0.15), seed, "few pairs") for seed in range(240)])
    assert 0.15 < found["found"].mean() < 0.4
    stated = found["covers"].dropna()
    assert len(stated) > 20 and stated.mean() > 0.85  # three standard errors below 95 % are 83 %
    assert found["plain"].mean() < 0.75


@pytest.mark.parametrize("lost", [False, True])
def test_interval_of_a_named_share_of_pairs_stays_between_0_and_1(lost: bool) -> None:
    right = torch.ones(20)
    right[:2] = 0
    specs = [CellSpec("patch", f"blocks.{i}.hook_resid_pre", i, str(i), "image") for i in range(2)]
    values = torch.stack([right * 0, right])[:, None]
    clean, corrupt = torch.ones(1, 20), torch.zeros(1, 20)
    if lost:
        values = 1 - values
    table = summarise_cells(
        specs, ["accuracy"], values, clean, corrupt, model="m", unchanged="clean" if lost else "corrupt",
        undefined_below=1e-3, seed=0,
    )  # fmt: skip
    row = summarise(table).iloc[0]
    assert row["found"] and row["layer"] == 1
    assert 0 <= row["effect_lower"] < row["effect"] < 0.9001 < row["effect_upper"] <= 1
    assert row["effect_upper"] == pytest.approx(wilson(0.9, 20.0).upper, abs=0.02)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("pairs", [20, 60])
def test_interval_of_the_best_of_small_shares_stays_between_0_and_1(pairs: int, lost: bool) -> None:
    for seed in range(5):
        right = torch.from_numpy((np.random.default_rng(seed).random((30, pairs)) < 0.05).astype(float))
        specs = [CellSpec("patch", f"blocks.{i}.hook_resid_pre", i, str(i), "image") for i in range(30)]
        table = summarise_cells(
            specs, ["accuracy"], (1 - right if lost else right)[:, None], torch.ones(1, pairs), torch.zeros(1, pairs),
            model="m", unchanged="clean" if lost else "corrupt", undefined_below=1e-3, seed=0,
        )  # fmt: skip
        best = table[["best_lower", "best_recovered", "best_upper"]].dropna().to_numpy()[0]
        assert 0 <= best[0] <= best[1] <= best[2] <= 1


def test_fiellers_interval_of_a_cell_far_above_what_is_needed_is_kept() -> None:
    arms = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        between = rng.lognormal(0.0, 0.8, 12)
        value = 0.5 * between + 0.1 * rng.normal(size=12) * between**1.5
        table = summarise_cells(
            [CellSpec("patch", "blocks.0.hook_resid_pre", 0, "0", "all")], ["logit_difference"],
            torch.from_numpy(value)[None, None], torch.from_numpy(between)[None], torch.zeros(1, 12).double(),
            model="m", unchanged="corrupt", undefined_below=1e-3, seed=0,
        )  # fmt: skip
        row = table.iloc[0]
        upper, lower = row["recovered_upper"] - row["recovered"], row["recovered"] - row["recovered_lower"]
        if row["p_max"] < 1e-3 and upper > 0:
            assert row["best_upper"] == pytest.approx(row["recovered_upper"], abs=0.05 * upper)
            assert row["best_lower"] <= row["recovered_lower"] + 1e-9
            arms.append(upper / lower)
    assert max(arms) > 1.2, "no interval is longer on one side"


@pytest.mark.parametrize("noise", [1e-4, 1e-3])
@pytest.mark.parametrize("pairs", [400, 2000])
def test_a_cell_that_restores_the_clean_run_up_to_rounding_has_an_interval(pairs: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    corrupt = rng.normal(-1.5, 1.0, pairs)
    clean = corrupt + rng.normal(3.0, 1.0, pairs)
    value = clean + noise * rng.normal(size=pairs)
    table = summarise_cells(
        [CellSpec("patch", "blocks.0.hook_resid_pre", 0, "0", "all")], ["logit_difference"],
        torch.from_numpy(value)[None, None], torch.from_numpy(clean)[None], torch.from_numpy(corrupt)[None],
        model="m", unchanged="corrupt", undefined_below=1e-3, seed=0,
    )  # fmt: skip
    row = table.iloc[0]
    assert row["best_lower"] < row["best_recovered"] < row["best_upper"]
    assert row["best_upper"] - row["best_lower"] == pytest.approx(
        row["recovered_upper"] - row["recovered_lower"], rel=0.02
    )


def test_shares_of_pairs_that_are_named_by_luck_have_intervals_that_reach_the_truth() -> None:
    covered = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        right = torch.from_numpy((rng.random((15, 8)) < 0.4).astype(float))
        specs = [CellSpec("patch", f"blocks.{i}.hook_resid_pre", i, str(i), "image") for i in range(15)]
        table = summarise_cells(
            specs, ["accuracy"], right[:, None], torch.ones(1, 8), torch.zeros(1, 8), model="m", unchanged="corrupt",
            undefined_below=1e-3, seed=0,
        )  # fmt: skip
        row = summarise(table).iloc[0]
        if row["found"] and row["effect"] is not None and not pd.isna(row["effect"]):
            covered.append(row["effect_lower"] <= 0.4 <= row["effect_upper"])
    assert len(covered) > 20 and np.mean(covered) > 0.85


def test_the_cell_that_the_summary_names_is_significant_itself() -> None:
    table = cell_table(20, 0.5, np.random.default_rng(0), seed=0)
    planted = table["best_recovered"].dropna().index[0]
    assert table.loc[planted, "p_max"] == table["p_max"].min() < 0.05
    other = table["p_max"].idxmax()
    # One larger cell varies so much that it is not significant.
    table.loc[other, ["recovered", "value"]] = 5.0
    assert table.loc[other, "p_max"] > 0.05
    row = summarise(table).iloc[0]
    assert row["found"] and row["layer"] == table.loc[planted, "layer"]
    assert row["p_max"] == table["p_max"].min()
    columns = ["best_recovered", "best_lower", "best_upper"]
    table.loc[other, columns] = table.loc[planted, columns].to_numpy()
    table.loc[planted, columns] = np.nan
    row = summarise(table).iloc[0]
    assert row["found"] and row["p_max"] < 0.05
    assert pd.isna(row["effect"])  # no effect that is corrected for the choice


def test_what_rounding_leaves_in_every_pair_is_no_effect() -> None:
    assert made_up(lambda clean: clean, unmoved=2e-3)[0]["p"].iloc[0] == pytest.approx(1e-4)
    assert made_up(lambda clean: clean, unmoved=4e-6)[0]["p"].iloc[0] == 1.0


def test_fraction_of_a_cell_is_not_drawn_to_pairs_that_hardly_differ() -> None:
    table, between = made_up(lambda clean: clean + 0.1)
    expected = 1 + 0.1 * between.numel() / float(between.sum())
    assert table["recovered"].iloc[1] == pytest.approx(expected, rel=1e-4)
    assert (1 + 0.1 / between).mean() > expected + 0.2  # what the mean of fractions would say


def test_pairs_without_difference_are_counted_and_left_out_of_the_fraction() -> None:
    clean, corrupt = torch.tensor([[2.0, 2.0, 5.0]]), torch.tensor([[0.0, 1.0, 5.0]])
    values = torch.tensor([[[1.0, 1.5, 9.0]]])
    specs = [CellSpec("patch", "blocks.0.attn.hook_z", 0, "0", "last", "1")]
    options = {"undefined_below": 1e-3}
    table = summarise_cells(specs, ["kl"], values, clean, corrupt, model="m", unchanged="corrupt", seed=0, **options)
    row = table.iloc[0]
    assert (row["n"], row["n_undefined"], row["head"]) == (3, 1, "1")
    assert row["recovered"] == pytest.approx(1.5 / 3)
    assert row["value"] == pytest.approx(11.5 / 3)
    listed = list_values(specs, ["kl"], values, clean, corrupt, ids=["a", "b", "c"], **options)
    assert listed["recovered"].tolist() == pytest.approx([0.5, 0.5, np.nan], nan_ok=True)
    assert listed["id"].tolist() == ["a", "b", "c"]


def test_fraction_is_undefined_where_differences_cancel() -> None:
    clean, corrupt = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    specs = [CellSpec("knockout", "blocks.0.attn.hook_pattern", 0, "0", "image->last")]
    table = summarise_cells(
        specs, ["accuracy"], torch.zeros(1, 1, 2), clean, corrupt, model="m", unchanged="clean", undefined_below=1e-3,
        seed=0,
    )  # fmt: skip
    assert table["recovered"].isna().all()
    assert table["n_undefined"].tolist() == [0]
