"""Training under a token plan: losses and weights equal those with dense masks; its cost and its record."""

import json
from pathlib import Path

import pytest
import torch

import tuning.training.loss
from models.llava import Llava
from models.loading.load import load
from models.token_plans.plan import recorded_token_plan
from records.options import ModelOptions
from tasks.errors import UserError
from tests.conftest import tiny_config
from tests.models.token_plans.oracle import densely_planned
from tests.tuning.conftest import samples_of
from tuning.compare.compare import run_compare
from tuning.compare.config import CompareConfig, CompareData
from tuning.config import DataOptions, Optimisation, PlanOptions, RunOptions, TuningConfig
from tuning.data.scene_mix import SceneMix
from tuning.plan.apply import apply_plan, planned_parameters
from tuning.plan.plan import LayerPlan
from tuning.plan.resolve import resolve
from tuning.run import run_tuning
from tuning.scoring.answers import score_answers
from tuning.training.train import train


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("text", ["1:hide", "1:freeze", "keep:0.5@1:random@0"])
def test_losses_and_weights_equal_those_with_dense_masks(
    text: str, apart: bool, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for way in ("packed", "dense"):
        llava = load(tiny_config(), seed=0, validate=False)
        resolved = resolve(LayerPlan("1-2", ("projector",), token_plan=text), llava)
        apply_plan(llava, resolved)
        samples = samples_of(llava, SceneMix(8, questions=2, apart=apart))
        if way == "dense":
            monkeypatch.setattr(tuning.training.loss, "planned", densely_planned)
        (tmp_path / way).mkdir()
        trained = train(
            llava, resolved, samples, optimisation=Optimisation(steps=5, batch_size=4, lr=1e-3, projector_lr=1e-3),
            options=RunOptions(save_every=0, log_every=1, gradient_checkpointing=checkpointing and way == "packed"),
            folder=tmp_path / way,
        )  # fmt: skip
        weights = {name: p.detach().clone() for name, p in planned_parameters(llava, resolved).items()}
        scores = score_answers(llava, samples, token_plan=text)
        found.append((trained.losses, weights, scores))
    (losses, weights, scores), (wanted_losses, wanted_weights, wanted_scores) = found
    assert list(losses) == [1, 2, 3, 4, 5]
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert len(set(losses.values())) == 5
    for name, weight in weights.items():
        torch.testing.assert_close(weight, wanted_weights[name], rtol=1e-3, atol=1e-5)
    assert scores["log_prob"].to_numpy() == pytest.approx(wanted_scores["log_prob"].to_numpy(), rel=1e-4)


def test_a_run_records_its_token_plan_and_is_scored_under_it(tmp_path: Path, base: Path) -> None:
    config = TuningConfig(
        ModelOptions(str(base)), PlanOptions("1", token_plan="1"),
        DataOptions(scenes=4, eval_spec="scenes", eval_limit=2), Optimisation(steps=2, batch_size=2),
        RunOptions(save_every=1), out=tmp_path / "run",
    )  # fmt: skip
    run_tuning(config)
    saved = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert saved["plan"]["token_plan"] == "1:hide"
    assert recorded_token_plan(tmp_path / "run", n_layers=3) == "1:hide"
    assert recorded_token_plan(base, n_layers=3) == "all"
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    plain = run_tuning(
        TuningConfig(
            config.model, PlanOptions("1"), config.data, config.optimisation, config.run, out=tmp_path / "plain"
        )
    )
    assert plain is not None
    assert cost["closed_form_ratio"] < json.loads((tmp_path / "plain" / "cost.json").read_text())["closed_form_ratio"]


def test_the_stored_prefix_is_refused_under_a_token_plan(fresh: Llava, mix: SceneMix, tmp_path: Path) -> None:
    resolved = resolve(LayerPlan("1", (), token_plan="leave@2"), fresh)
    apply_plan(fresh, resolved)
    with pytest.raises(UserError, match="keep-prefix must be off under a token plan"):
        train(
            fresh, resolved, samples_of(fresh, mix), optimisation=Optimisation(steps=1), options=RunOptions(),
            folder=tmp_path, keep_prefix=True,
        )  # fmt: skip


def test_a_token_plan_of_another_depth_is_refused_before_training(fresh: Llava) -> None:
    with pytest.raises(UserError, match=r"layer must be in \[0, 3\), got 7"):
        resolve(LayerPlan("1", (), token_plan="leave@7"), fresh)


def test_compare_runs_full_and_band_under_the_plan(tmp_path: Path) -> None:
    config = CompareConfig(
        ModelOptions("random:tiny"), token_plan="1-2", plans=("full", "middle band", *(
            f"{name} under the token plan" for name in ("full", "middle band")
        )), data=CompareData(scenes=4, score_scenes=2), optimisation=Optimisation(steps=2, batch_size=2),
        timing_rounds=1, out=tmp_path / "compare",
    )  # fmt: skip
    finished = run_compare(config)
    table = finished.results
    assert list(dict.fromkeys(table["plan"])) == list(config.plans)
    ratio = table.groupby("plan")["closed_form_ratio"].first()
    assert ratio["full under the token plan"] < ratio["full"] == 1
    assert ratio["middle band under the token plan"] < ratio["middle band"]
    facts = json.loads((tmp_path / "compare/runs/full-under-the-token-plan-seed0/run.json").read_text())
    assert facts["plan"] == "full under the token plan"


@pytest.mark.parametrize("text", ["1:freeze", "keep:0.5@1:attention"])
def test_bfloat16_trains_under_a_token_plan(text: str, mix: SceneMix, tmp_path: Path) -> None:
    losses = []
    for number, bf16 in enumerate((False, True)):
        llava = load(tiny_config(), seed=0, validate=False)
        resolved = resolve(LayerPlan("1-2", ("projector",), token_plan=text), llava)
        apply_plan(llava, resolved, low_precision=bf16)
        folder = tmp_path / str(number)
        folder.mkdir()
        trained = train(
            llava, resolved, samples_of(llava, mix), optimisation=Optimisation(steps=1, batch_size=4),
            options=RunOptions(save_every=0), folder=folder, bf16=bf16,
        )  # fmt: skip
        losses.append(trained.losses[1])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
