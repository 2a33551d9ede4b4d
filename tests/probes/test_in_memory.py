"""``probe`` and ``direction`` give the sweep's numbers, and its directions steer."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from interventions.operations.directions import direction_at, load_directions
from models.llava import Llava
from models.loading.load import load
from models.sites import Site
from probes import direction, load_probes, probe
from probes.config import DataOptions, ModelOptions, ProbeOptions, SiteOptions, SweepConfig
from probes.in_memory import ProbeResult
from probes.sweep import run_sweep
from records.run import FinishedRun
from tasks.errors import UserError
from tasks.scenes.datasets import scenes_dataset

SITES = ("projector:out", "resid_post")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Llava:
    return load(checkpoint)


@pytest.fixture(scope="module")
def result(model: Llava) -> ProbeResult:
    scenes = scenes_dataset(split="test", n=40, size=model.image_size)
    return probe(model, scenes, target=["colour", "count"], sites=SITES, folds=3)


@pytest.fixture(scope="module")
def run(checkpoint: Path, model: Llava, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    config = SweepConfig(
        model=ModelOptions(name=str(checkpoint)),
        data=DataOptions(limit=40, transfer="none"),
        sites=SiteOptions(specs=SITES),
        probing=ProbeOptions(targets=("colour", "count"), folds=3, maps=0),
        out=tmp_path_factory.mktemp("sweep") / "run",
    )
    finished = run_sweep(config, llava=model, figures=False)
    assert isinstance(finished, FinishedRun)
    return finished


def test_the_front_door_gives_the_table_and_probes_of_the_sweep(result: ProbeResult, run: FinishedRun) -> None:
    ours, theirs = (table.drop(columns="model") for table in (result.table, run.results))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert ours["random_init"].notna().any()
    saved = load_probes(run.folder)
    assert [(p.target, p.site, p.classes) for p in result.probes] == [(p.target, p.site, p.classes) for p in saved]
    assert all((a.coef == b.coef).all() for a, b in zip(result.probes, saved, strict=True))


def test_the_model_still_runs_after_its_controls(model: Llava, result: ProbeResult) -> None:
    assert next(model.model.parameters()).device.type == "cpu"
    assert result.table["shuffled"].notna().any()


def test_saved_directions_are_those_that_steering_reads(run: FinishedRun, result: ProbeResult) -> None:
    saved = load_directions(run.folder / "directions.safetensors")
    assert saved.keys() == result.directions.keys()
    for layer in range(3):
        site = Site("language_model", layer, "resid_post")
        expected = direction(result, "red", target="colour", site=site)
        assert expected.norm().item() == pytest.approx(1)
        torch.testing.assert_close(direction_at(saved, "colour=red@resid_post", site), expected)
    assert saved["colour=red@projector:out"].shape == (48,)


def test_a_fitted_probe_reads_its_class_further_along_the_direction(result: ProbeResult) -> None:
    first = []
    for fitted in result.probes:
        for number, class_ in enumerate(fitted.classes):
            moved = torch.from_numpy(fitted.coef) @ fitted.direction(class_)
            if len(moved) == 1:
                assert (moved > 0) == (number == 1)
            else:  # the class rises against the mean of all, and mostly more than any other class
                assert moved[number] > moved.mean()
                first.append(moved.argmax() == number)
    assert np.mean(first) > 0.8


def test_a_result_prints_and_plots_itself(result: ProbeResult) -> None:
    assert "colour" in repr(result) and len(repr(result).splitlines()) < 12
    assert "<table" in result._repr_html_()
    assert result.plot() is not None


def test_errors_name_what_there_is(result: ProbeResult, model: Llava) -> None:
    with pytest.raises(UserError, match="Targets: colour, count"):
        direction(result, "red", site="blocks.0.hook_mlp_out")
    with pytest.raises(UserError, match="class_ must be one of"):
        direction(result, "plaid", target="colour", site="blocks.0.hook_resid_post")
    with pytest.raises(UserError, match="must have a label"):
        probe(model, list(scenes_dataset(n=4, size=28).examples), target="mood")
