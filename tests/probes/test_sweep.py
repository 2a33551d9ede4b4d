import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from models.sites import Site
from probes.activations.fill import capture_pooled, layouts, width
from probes.activations.store import ActivationStore
from probes.config import DataOptions, ModelOptions, ProbeOptions, SiteOptions, SweepConfig
from probes.fit_sites import COLUMNS, fit_sites
from probes.probe_data import ProbeData, fold_plans
from probes.report_table import onset_row, summarise
from probes.sweep import Estimate, run_sweep
from records.run import FinishedRun
from tasks.example import Target
from tests.conftest import make_examples

SITES = ("vision:resid_post", "projector:out", "resid_post")


def config(checkpoint: Path, out: Path, **changes: object) -> SweepConfig:
    options: dict[str, object] = {
        "model": ModelOptions(name=str(checkpoint)),
        "data": DataOptions(limit=60, transfer_limit=20),
        "sites": SiteOptions(specs=SITES),
        "probing": ProbeOptions(targets=("colour", "count"), folds=3),
        "out": out,
        **changes,
    }
    return SweepConfig(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    done = run_sweep(config(checkpoint, tmp_path_factory.mktemp("sweep") / "run"))
    assert isinstance(done, FinishedRun)
    return done


def files(folder: Path) -> dict[str, bytes]:
    """Everything that must be equal between equal runs: all but locks, the order of checksums and the clock."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}
    del found["manifest.json"]
    return found


def test_a_model_in_memory_gives_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {
        "data": DataOptions(limit=30, transfer="none"),
        "sites": SiteOptions(specs=("projector:out",)),
        "probing": ProbeOptions(targets=("colour",), folds=2, controls=False, maps=0),
    }
    there = load(checkpoint)
    alone = run_sweep(config(checkpoint, tmp_path / "alone", **few))
    monkeypatch.setattr("records.open_model.load", None)
    given = run_sweep(config(checkpoint, tmp_path / "given", **few), llava=there)
    assert isinstance(alone, FinishedRun)
    assert isinstance(given, FinishedRun)
    assert files(given.folder) == files(alone.folder)


def test_results_have_one_row_for_each_target_site_and_split(finished: FinishedRun) -> None:
    results = finished.results
    assert list(results.columns) == list(COLUMNS)
    assert not results.duplicated(["target", "site", "split"]).any()
    n_sites = 3 + 1 + 3 + 1  # vision tower, projector, language model, pixels
    assert len(results) == 2 * n_sites * 2
    assert list(dict.fromkeys(results["split"])) == ["cv", "unseen"]
    csv = pd.read_csv(finished.folder / "results.csv")
    np.testing.assert_allclose(csv["score"], results["score"])


def test_intervals_hold_the_score_and_selectivity_is_the_difference(finished: FinishedRun) -> None:
    results = finished.results
    assert ((results["lower"] <= results["score"]) & (results["score"] <= results["upper"])).all()
    validated = results[results["split"] == "cv"]
    np.testing.assert_allclose(validated["selectivity"], validated["score"] - validated["control"])
    sites = validated["part"] != "pixels"
    assert (validated["q"] >= validated["p"] - 1e-12)[sites].all()
    assert validated["q"][~sites].isna().all()
    assert validated[validated["part"] != "pixels"]["random_init"].notna().all()
    assert set(validated["n"]) == {60}
    assert set(results[results["split"] == "unseen"]["n"]) == {20}


def test_object_targets_are_read_from_the_focus_box_and_others_from_the_picture(finished: FinishedRun) -> None:
    tokens = finished.results.groupby("target")["tokens"].unique()
    assert list(tokens["colour"]) == ["object"]
    assert list(tokens["count"]) == ["image"]


def test_colour_is_read_from_raw_pixels_and_shuffled_labels_are_not(finished: FinishedRun) -> None:
    row = finished.results.query("part == 'pixels' and target == 'colour' and split == 'cv'").iloc[0]
    assert row["lower"] > row["chance"] + 0.2  # the effect is there
    assert abs(row["shuffled"] - row["chance"]) < 0.2  # 60 examples, seven classes: two standard errors are 0.1


def test_examples_are_written_with_labels_and_spans(finished: FinishedRun) -> None:
    table = pd.read_parquet(finished.folder / "examples.parquet")
    assert len(table) == 80
    assert table["fitted"].sum() == 60
    assert (table["image_stop"] - table["image_start"] == 16).all()
    assert (table["image_stop"] <= table["prompt_stop"]).all()
    assert set(table["label_count"]) == {1, 2, 3, 4}


def test_stored_bytes_match_the_estimate(checkpoint: Path, finished: FinishedRun, tmp_path: Path) -> None:
    estimate = run_sweep(config(checkpoint, tmp_path / "run", dry_run=True))
    assert isinstance(estimate, Estimate)
    assert not (tmp_path / "run").exists()
    shards = [p for name in ("activations", "random_init") for p in (finished.folder / name).rglob("*.safetensors")]
    values = sum(p.stat().st_size - 8 - int.from_bytes(p.read_bytes()[:8], "little") for p in shards)
    assert abs(estimate.size.activations - 1.02 * values) <= 1


def test_second_run_finds_everything_done(
    checkpoint: Path, finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("what is on the disk was computed again")

    before = files(finished.folder)
    monkeypatch.setattr("probes.activations.fill._capture", fail)
    monkeypatch.setattr("probes.sweep.fit_sites", fail)
    again = run_sweep(config(checkpoint, finished.folder))
    assert isinstance(again, FinishedRun)
    assert files(finished.folder) == before


def test_pooled_capture_of_two_groups_equals_each_alone(llava: Llava) -> None:
    examples, sites = make_examples(5), [Site("vision_tower", 1, "resid_post"), Site("language_model", 1, "z")]
    settings = SweepConfig(batch_size=2)
    both = capture_pooled(llava, examples, sites, ["object", "image"], settings)
    for group in ("object", "image"):
        alone = capture(llava, prepare(llava, examples), sites, tokens=group, pool="mean", examples=examples)
        for site in sites:
            # Another batch size sums in another order: float32 rounding.
            torch.testing.assert_close(both[site][group], alone[site].flatten(1), rtol=1e-4, atol=1e-5)
            assert both[site][group].shape[1] == width(site, llava)
    assert not torch.allclose(both[sites[0]]["object"], both[sites[0]]["image"])


@pytest.mark.parametrize("name", ["resid_post", "mlp_out", "q", "k", "v", "z"])
def test_width_is_that_of_the_captured_activation(llava: Llava, llava_plain: Llava, name: str) -> None:
    for model in (llava, llava_plain):
        sites = [Site("language_model", 1, name), Site("vision_tower", 1, name)]
        sites += [Site("projector", None, stage) for stage in ("in", "linear_1", "act", "out")]
        found = capture_pooled(model, make_examples(1), sites, ["image"], SweepConfig())
        assert {site: rows["image"].shape[1] for site, rows in found.items()} == {s: width(s, model) for s in sites}


def test_layouts_are_those_of_the_real_prompts(llava: Llava) -> None:
    examples = make_examples(4, n_pictures=(1, 2, 0))
    expected = [prepare(llava, [example]).layout[0] for example in examples]
    assert [layout.images for layout in layouts(llava, examples, SweepConfig())] == [e.images for e in expected]


def planted(tmp_path: Path, *, duplicates: bool = False) -> tuple[pd.DataFrame, list[Site]]:
    """A sweep over made-up activations: the label stands in layer 1 along one direction, and nowhere else."""
    generator = torch.Generator().manual_seed(0)
    n, sites = 120, [Site("language_model", layer, "resid_post") for layer in range(3)]
    pictures = n // 4 if duplicates else n
    labels = torch.randint(2, (pictures,), generator=generator)
    of_picture = torch.arange(n) % pictures
    store = ActivationStore(tmp_path / "activations", n, n)
    values = {}
    for layer, site in enumerate(sites):
        rows = torch.randn(pictures, 24, generator=generator)
        if layer == 1 and not duplicates:
            rows[:, 5] += 4.0 * labels
        values[site] = {"image": rows[of_picture]}
    store.write(store.shards[0], values)
    examples = [
        make_examples(1)[0].__class__(
            id=f"e{i}", pictures=(), question="", answer="", group=f"g{int(of_picture[i])}",
            labels={"planted": int(labels[of_picture[i]])},
        )
        for i in range(n)
    ]  # fmt: skip
    selection = ProbeData("made up", "0", examples, n, None, (Target("planted"),), {"planted": "image"})
    settings = SweepConfig(probing=ProbeOptions(targets=("planted",)))
    plans = fold_plans(selection, settings)
    fitted = fit_sites(store, None, sites, [0.3, 0.7, 1.0], selection, plans, settings, lambda done: None)
    return fitted.table, sites


def test_planted_direction_is_found_at_its_layer_and_at_no_other(tmp_path: Path) -> None:
    results, _ = planted(tmp_path)
    scores = results.set_index("layer")["score"]
    assert scores[1] > 0.9
    assert max(abs(scores[0] - 0.5), abs(scores[2] - 0.5)) < 0.15  # 120 examples: three standard errors are 0.14
    assert summarise(results)[["peak", "onset"]].iloc[0].tolist() == ["1", "1"]


def test_label_leaked_through_duplicate_pictures_is_caught_by_grouping(tmp_path: Path) -> None:
    results, _ = planted(tmp_path, duplicates=True)
    assert results["score"].max() < 0.75  # 30 distinct pictures of noise; with leakage it would be near 1


def test_folds_of_the_control_model_are_those_of_the_model(tmp_path: Path) -> None:
    examples = make_examples(40)
    targets, tokens, config = (Target("kind"),), {"kind": "image"}, SweepConfig(probing=ProbeOptions(controls=False))
    for last in ("cat", "newt"):  # a transfer set with a class of its own changes nothing
        examples[-1] = replace(examples[-1], labels={"kind": last})
        whole = fold_plans(ProbeData("x", "0", examples, 30, "held out", targets, tokens), config)["image"]
        part = whole.fitted_only()
        alone = fold_plans(ProbeData("x", "0", examples[:30], 30, None, targets, tokens), config)["image"]
        for ours, theirs in ((part.targets["kind"], alone.targets["kind"]), (part, alone)):
            for field in fields(ours):
                if field.name not in ("targets", "permutations"):
                    assert str(getattr(ours, field.name)) == str(getattr(theirs, field.name)), field.name


def test_onset_is_the_first_significant_layer_near_the_peak() -> None:
    curve = pd.DataFrame(
        {
            "score": [0.5, 0.75, 0.92, 1.0],
            "p_max": [0.9, 0.01, 0.01, 0.01],
            "best_score": np.nan,
            "chance": 0.5,
            "layer": [0, 1, 2, 3],
        }
    )
    onset = onset_row(curve.assign(score=[0.5, 0.75, 0.96, 1.0]))
    assert onset is not None
    assert onset["layer"] == 2  # 0.96 is 92 % of the gain of 0.5
    assert onset_row(curve.assign(p_max=0.06)) is None


COMMAND = [
    "--limit", "200", "--transfer-limit", "10", "--target", "colour", "--folds", "2", "--site", "resid_post",
    "--site", "projector:out", "--batch-size", "2",
]  # fmt: skip


def launch(command: list[str], checkpoint: Path, out: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = [*command, *COMMAND, "--model", str(checkpoint), "--out", str(out)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "run"
    process = launch([sys.executable, "-m", "probes.cli"], checkpoint, out)
    assert process.wait() == 0, process.communicate()[1].decode()
    return files(out)


def test_run_that_was_killed_in_mid_capture_ends_with_the_same_bytes(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = launch([sys.executable, "-m", "probes.cli"], checkpoint, out)
    while not list(out.glob("activations/*/00000.safetensors")):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    written = len(list(out.glob("activations/*/*.safetensors")))
    assert 0 < written < sum(name.startswith("activations/") for name in undisturbed)
    assert not (out / "results.parquet").exists()
    again = launch([sys.executable, "-m", "probes.cli"], checkpoint, out)
    assert again.wait() == 0, again.communicate()[1].decode()
    assert files(out) == undisturbed


def test_two_processes_write_the_same_bytes_as_one(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    launcher = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
        "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "probes.cli",
    ]  # fmt: skip
    process = launch(launcher, checkpoint, tmp_path / "run")
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error
    assert files(tmp_path / "run") == undisturbed


def test_capture_holds_one_shard_however_many_examples(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest number of examples that capture is ever handed does not grow with the data."""
    from probes.activations import fill as capturing
    from records.processes import Processes

    handed: list[int] = []
    real = capturing._capture

    def watch(model: Llava, examples: list[object], *rest: object) -> object:
        handed.append(len(examples))
        return real(model, examples, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(capturing, "_capture", watch)
    sites = [Site("projector", None, "out")]
    for n in (40, 160):
        store = ActivationStore(tmp_path / str(n), n, capturing.shard_size(16))
        capturing.fill_store(
            store, lambda: llava, make_examples(n), sites, ["image"], SweepConfig(), Processes(), lambda done: None
        )
    assert max(handed) == capturing.shard_size(16) == 64
