"""The estimate of ``--dry-run`` against the processor time of a small run on smol, stage by stage."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interventions.config import InterventionOptions, PairOptions, PatchConfig
from interventions.sweep import run_patch_sweep
from interventions.token_plans.config import InferenceConfig, QuestionOptions
from interventions.token_plans.sweep import run_inference_cost
from probes.activations.capture_run import run_capture
from probes.activations.config import CaptureConfig, CapturedSites
from probes.activations.write import write_activations
from probes.config import DataOptions, ProbeOptions, SiteOptions, SweepConfig
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.run import run_geometry_sweep
from probes.lenses.config import CorpusOptions, LensConfig, TrainConfig, TrainDataOptions
from probes.lenses.config import DataOptions as LensData
from probes.lenses.sweep import run_lens_sweep
from probes.lenses.training_run import run_lens_training
from probes.sweep import run_sweep
from probes.transfer.config import TransferConfig
from probes.transfer.sweep import run_transfer
from records.evaluation.config import EvaluationConfig
from records.evaluation.run import run_benchmark_eval
from records.progress import silent
from records.timings import Timings
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tuning.config import DataOptions as TuningData
from tuning.config import Optimisation, PlanOptions, TuningConfig
from tuning.run import run_tuning

# The documents say a factor of two for runs of minutes on an idle machine. These runs take seconds, of which Python is
# a larger part, beside other processes that share the caches.
FACTOR = 4.0
LONG = 1.0  # seconds from which a stage is compared
SMALL: dict[str, tuple[Callable[..., Any], Any]] = {
    "patch-sweep": (
        run_patch_sweep,
        PatchConfig(InterventionOptions(tokens=("image",), layers="0,15"), pairs=PairOptions(limit=3)),
    ),
    "inference-cost": (
        run_inference_cost,
        InferenceConfig(questions=QuestionOptions(limit=3, split="test"), plans="leave@16", new_tokens=2, rounds=0),
    ),
    "probe-sweep": (
        run_sweep,
        SweepConfig(
            data=DataOptions(limit=40, transfer="none"), sites=SiteOptions(("resid_post",), layers="3,20"),
            probing=ProbeOptions(targets=("place",), maps=0, controls=False),
        ),
    ),
    "capture-activations": (
        run_capture,
        CaptureConfig(
            data=DataOptions(limit=12, transfer="none"), condition="both", sites=CapturedSites(("resid_post",), "3,12")
        ),
    ),
    "transfer-sweep": (run_transfer, TransferConfig(Path("stored"), targets=("kind",))),
    "geometry-sweep": (run_geometry_sweep, GeometryConfig(Path("stored"))),
    "lens-sweep": (
        run_lens_sweep,
        LensConfig(data=LensData(limit=3), lenses=("logit",), layers="5,20", shown=1),
    ),
    "lens-sweep with a latent lens": (
        run_lens_sweep,
        LensConfig(
            data=LensData(limit=3), lenses=("latent",), layers="5", text=CorpusOptions(corpus_tokens=256),
            controls=False, shown=0,
        ),
    ),
    "lens-sweep train": (
        run_lens_training, TrainConfig(data=TrainDataOptions(limit=4, eval_limit=1), steps=2, batch_size=2),
    ),
    "lens-sweep train --kind latent": (
        run_lens_training, TrainConfig(kind="latent", text=CorpusOptions(corpus_tokens=256)),
    ),
    "benchmark-eval": (run_benchmark_eval, EvaluationConfig(benchmarks=("pope=pope",), limit=6, new_tokens=2)),
    "layerwise-finetune": (
        partial(run_tuning),
        TuningConfig(plan=PlanOptions(layers="20-29"), optimisation=Optimisation(steps=2), data=TuningData(scenes=2)),
    ),
}  # fmt: skip


def write_random(folder: Path, *, n: int, d: int, n_layers: int) -> None:
    """A capture of random numbers, with a label that they do not show."""
    draw = np.random.default_rng(0)
    arrays = {
        condition: {
            f"blocks.{layer}.hook_resid_post": {condition: draw.normal(size=(n, d)).astype(np.float32)}
            for layer in range(n_layers)
        }
        for condition in ("image", "caption")
    }
    table = pd.DataFrame({"id": [str(i) for i in range(n)], "label_kind": ["cat", "dog", "bus"] * (n // 3)})
    write_activations(folder, arrays, table)


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and the timer of a run counts the processor time of this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("records.run.Timings", partial(Timings, time.process_time))
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow  # speed differs between machines
@pytest.mark.smol
@pytest.mark.parametrize("command", SMALL)
def test_a_dry_run_estimates_each_stage_within_a_small_factor(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = SMALL[command]
    monkeypatch.chdir(tmp_path)
    if command == "benchmark-eval":
        write_pope(Path("pope"), scene_pictures(1, size=112))
    elif command == "transfer-sweep":
        write_random(Path("stored"), n=300, d=512, n_layers=4)
    elif command == "geometry-sweep":
        # With few points the checks of shapes, which run only in tests, take most of the time.
        write_random(Path("stored"), n=1200, d=64, n_layers=2)
    estimate = run(replace(settings, out=tmp_path / "run", dry_run=True))
    stages: Mapping[str, float] = estimate.stages
    assert "about " in str(estimate) and not (tmp_path / "run").exists()
    run(replace(settings, out=tmp_path / "run"), on_progress=silent)
    measured = json.loads((tmp_path / "run" / "manifest.json").read_text())["timings"]
    assert set(stages) - {"figures"} <= {*measured, *(name for name, value in stages.items() if value < LONG)}
    compared = [name for name in stages if name in measured and max(measured[name], stages[name]) >= LONG]
    wrong = {
        name: (round(stages[name], 1), measured[name])
        for name in compared
        if not 1 / FACTOR < stages[name] / max(measured[name], 0.1) < FACTOR
    }
    assert len(set(compared) - {"load", "load and survey"}) >= 1 and not wrong
