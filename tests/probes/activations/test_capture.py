"""Activations that are captured once: the bytes and tables of the all-in-one command, without its forward passes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.capture import capture
from models.inputs import prepare
from models.loading.load import load
from models.sites import Site
from probes.activations.capture_run import CaptureEstimate, run_capture
from probes.activations.cli import main
from probes.activations.config import CaptureConfig, CapturedSites
from probes.activations.examples import load_examples
from probes.activations.open import open_activations
from probes.activations.store import ActivationStore
from probes.config import DataOptions, ProbeOptions, SiteOptions, SweepConfig
from probes.sweep import run_sweep
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.captions import captioned_examples
from tasks.errors import UserError

SITES = ("vision:resid_post@2", "projector:out", "resid_post")
DATA = DataOptions(limit=40, transfer_limit=12)
PROBING = ProbeOptions(targets=("colour", "count"), folds=2, maps=0)


def stored(folder: Path) -> dict[str, bytes]:
    """The bytes of every shard and of the table of examples."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".safetensors", ".parquet") and path.name not in ("results.parquet",)
    }


def captured(checkpoint: Path, out: Path, **changes: object) -> FinishedRun:
    options: dict[str, object] = {
        "model": ModelOptions(str(checkpoint)),
        "data": DATA,
        "sites": CapturedSites(SITES, tokens=("object", "image")),
        "out": out,
        **changes,
    }
    done = run_capture(CaptureConfig(**options))  # type: ignore[arg-type]
    assert isinstance(done, FinishedRun)
    return done


@pytest.fixture(scope="module")
def run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(checkpoint, tmp_path_factory.mktemp("capture") / "run", random_init=True).folder


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sites = CapturedSites(SITES, tokens=("image", "caption", "last"))
    data = DataOptions(limit=12, transfer="none")
    return captured(
        checkpoint, tmp_path_factory.mktemp("both") / "run", sites=sites, data=data, condition="both"
    ).folder


def test_bytes_and_tables_equal_those_of_the_all_in_one_command(
    checkpoint: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SweepConfig(ModelOptions(str(checkpoint)), DATA, SiteOptions(SITES), PROBING, out=tmp_path / "at-once")
    at_once = run_sweep(config)
    assert isinstance(at_once, FinishedRun)
    for name in ("activations", "random_init"):
        assert stored(run / name) == stored(at_once.folder / name) != {}
    monkeypatch.setattr("probes.sweep.open_model", None)
    monkeypatch.setattr("models.llava.Llava.run_language_model", None)
    read = run_sweep(SweepConfig(probing=PROBING, activations=run, out=tmp_path / "read"))
    assert isinstance(read, FinishedRun)
    pd.testing.assert_frame_equal(read.results, at_once.results)
    assert read.results["random_init"].notna().any() and (read.results["part"] == "pixels").any()
    probes = [(folder / "probes.safetensors").read_bytes() for folder in (read.folder, at_once.folder)]
    assert probes[0] == probes[1]


def test_new_labels_of_a_file_are_read_from_the_same_activations(run: Path, tmp_path: Path) -> None:
    table = open_activations(run).examples
    labels = tmp_path / "mine.csv"
    renamed = {"id": table["id"], "shade": "no " + table["label_colour"], "x": np.arange(len(table)) / 7.0}
    pd.DataFrame(renamed).sample(frac=1, random_state=0).to_csv(labels, index=False)
    few = SiteOptions(("projector:out",))
    config = SweepConfig(sites=few, probing=replace(PROBING, targets=("shade:object", "x")), activations=run)
    own = run_sweep(replace(config, labels=labels, out=tmp_path / "own"))
    first = run_sweep(replace(config, probing=replace(PROBING, targets=("colour",)), out=tmp_path / "first"))
    assert isinstance(own, FinishedRun) and isinstance(first, FinishedRun)
    by_target = own.results[own.results["part"] != "pixels"].groupby("target")["metric"].first()
    assert dict(by_target) == {"shade": "balanced_accuracy", "x": "r2"}
    shade = own.results[own.results["target"] == "shade"]
    np.testing.assert_array_equal(shade["score"], first.results["score"])  # the same classes under other names


def test_every_condition_and_token_group_holds_what_a_run_of_its_own_gives(both: Path, checkpoint: Path) -> None:
    llava = load(checkpoint)
    found = open_activations(both)
    assert found.tokens_of == {"image": ("image", "last"), "caption": ("caption", "last")}
    examples = load_examples(replace(DATA, limit=12, transfer="none"), seed=0, size=llava.image_size).both
    site = Site("language_model", 1, "resid_post")
    for condition, shown in (("image", examples), ("caption", captioned_examples(examples))):
        for group in found.tokens_of[condition]:
            inputs = prepare(llava, [shown[i] for i in range(12)])
            expected = capture(llava, inputs, [site], tokens=group, pool="mean")[site]  # type: ignore[arg-type]
            np.testing.assert_allclose(found.numpy(site, group, condition), expected.numpy(), atol=1e-5)
    assert set(found.examples["caption_stop"] - found.examples["caption_start"]) != {0}
    with pytest.raises(UserError, match="site must be one that the run .* for .caption. tokens"):
        found.numpy(Site("projector", None, "out"), "caption", "caption")


def test_without_pooling_the_mean_of_an_examples_tokens_is_the_pooled_row(checkpoint: Path, both: Path) -> None:
    sites = CapturedSites(SITES, tokens=("image", "caption", "last"), pool="none")
    data = DataOptions(limit=12, transfer="none")
    every = open_activations(
        captured(checkpoint, both.parent / "every", sites=sites, data=data, condition="both", batch_size=5).folder
    )
    pooled = open_activations(both)
    for group, condition in (("image", "image"), ("last", "image"), ("caption", "caption")):
        place = every.token_rows(group, condition)
        for name in ("blocks.2.hook_resid_post", *(("vision_projector.hook_out",) if group == "image" else ())):
            means = pd.DataFrame(every.numpy(name, group, condition)).groupby(place["example"]).mean()
            np.testing.assert_allclose(means, pooled.numpy(name, group, condition), atol=1e-5)
    patches = every.token_rows("image")
    first = patches[patches["example"] == 3]
    assert first[["row", "column"]].to_numpy().tolist() == [[r, c] for r in range(4) for c in range(4)]
    start = every.examples["image_start"].iloc[3]
    assert first["position"].tolist() == list(range(start, start + 16))
    assert (every.token_rows("caption", "caption")["row"] == -1).all()


def test_pool_last_is_the_last_token_of_the_group(checkpoint: Path, both: Path) -> None:
    data, one = DataOptions(limit=4, transfer="none"), ("blocks.2.hook_resid_post",)
    last = open_activations(
        captured(
            checkpoint, both.parent / "last", data=data, condition="caption",
            sites=CapturedSites(one, tokens=("all", "last"), pool="last"),
        ).folder
    )  # fmt: skip
    np.testing.assert_allclose(last.numpy(one[0], "all", "caption"), last.numpy(one[0], "last", "caption"), atol=1e-6)


def test_a_capture_that_stops_is_resumed_to_the_same_bytes(
    checkpoint: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = ActivationStore.write, list[int]()

    def stop(self: ActivationStore, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(ActivationStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            captured(checkpoint, tmp_path / "run", random_init=True)
    assert 0 < len(stored(tmp_path / "run")) < len(stored(run))
    captured(checkpoint, tmp_path / "run", random_init=True)
    assert stored(tmp_path / "run") == stored(run)
    before = open_activations(run)
    assert before.random_init is not None and len(before.random_init) == 40


def test_killed_process_is_resumed_to_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--model", str(checkpoint), "--limit", "200", "--transfer", "none", "--site", "resid_post"]
    command = [sys.executable, "-m", "probes.activations.cli", *options, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list((tmp_path / "killed").glob("activations/*/00000.safetensors")):
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    data = DataOptions(limit=200, transfer="none")
    sites = CapturedSites(("resid_post",))
    for name in ("killed", "whole"):
        captured(checkpoint, tmp_path / name, data=data, sites=sites)
    assert stored(tmp_path / "killed") == stored(tmp_path / "whole")


def test_stored_bytes_match_the_estimate(checkpoint: Path, run: Path, tmp_path: Path) -> None:
    config = CaptureConfig(
        ModelOptions(str(checkpoint)), DATA, sites=CapturedSites(SITES, tokens=("object", "image")), random_init=True,
        out=tmp_path / "none", dry_run=True,
    )  # fmt: skip
    estimate = run_capture(config)
    assert isinstance(estimate, CaptureEstimate) and not (tmp_path / "none").exists()
    values = sum(
        path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in run.rglob("*.safetensors")
    )
    assert abs(estimate.size.activations - 1.02 * values) <= 1
    results = pd.read_csv(run / "results.csv")
    assert results["bytes"].sum() == values
    assert set(results["weights"]) == {"model", "random_init"}


def test_norms_of_the_table_are_those_of_the_rows(run: Path) -> None:
    row = pd.read_csv(run / "results.csv").query("site == 'blocks.2.hook_resid_post' and tokens == 'image'").iloc[0]
    x = open_activations(run).numpy("blocks.2.hook_resid_post", "image")
    assert row["norm"] == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-5)
    assert (row["n_rows"], row["d"]) == x.shape


def test_store_dtype_rounds_the_stored_values(checkpoint: Path, run: Path, tmp_path: Path) -> None:
    sites = CapturedSites(SITES, tokens=("object", "image"), stored_as="float16")
    half = open_activations(captured(checkpoint, tmp_path / "half", sites=sites).folder)
    whole = open_activations(run).tensor("blocks.0.hook_resid_post", "image")
    assert torch.equal(half.tensor("blocks.0.hook_resid_post", "image"), whole.half())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "caption"], "tokens must exist in the condition 'image', got 'caption'"),
        (["--tokens", "image", "--condition", "both"], "tokens must name a group of the condition 'caption'"),
        (["--site", "vision:resid_post", "--tokens", "last"], "site must be in the language model for tokens 'last'"),
        (["--site", "projector:out", "--condition", "both"], "site must be in the language model for the condition"),
        (["--batch-size", "0"], "batch-size must be >= 1, got 0"),
        (["--pool", "box", "--tokens", "last"], "pool box must go with tokens 'image' alone"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--model", "random:tiny", "--limit", "4", "--out", str(tmp_path / "run"), *options])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and message in printed and printed.count("\n") == 1


def replaced(run: Path, **changes: object) -> Callable[[], object]:
    return lambda: run_sweep(replace(SweepConfig(activations=run, probing=PROBING), **changes))  # type: ignore[arg-type]


def test_settings_that_stored_activations_do_not_have_are_one_sentence(
    run: Path, checkpoint: Path, tmp_path: Path
) -> None:
    sites = CapturedSites(SITES, tokens=("image",), pool="none")
    every = captured(checkpoint, tmp_path / "every", sites=sites, data=DataOptions(limit=12, transfer="none")).folder
    labels = tmp_path / "some.csv"
    ids = open_activations(run).examples["id"]
    pd.DataFrame({"id": ids[:-3], "y": "a"}).to_csv(labels, index=False)
    cases = {
        "condition must be one that": replaced(run, condition="caption"),
        "tokens must be stored in .* got 'last'": replaced(run, sites=SiteOptions(tokens="last")),
        "site must be stored in": replaced(run, sites=SiteOptions(("mlp_out",))),
        "labels must cover every example, got none for 3 of 52": replaced(
            run, labels=labels, probing=ProbeOptions(targets=("y",))
        ),
        "target must be one of": replaced(run, probing=ProbeOptions(targets=("nose",))),
        "activations must be the folder of a run": replaced(tmp_path),
        "one row for each example, got pool 'none'": replaced(every),
    }
    for message, call in cases.items():
        with pytest.raises(UserError, match=message):
            call()
