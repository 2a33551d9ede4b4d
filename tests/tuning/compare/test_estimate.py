"""The time that a dry run of a comparison names: what remains, from the operations of each plan."""

from dataclasses import replace

import pytest

from records.open_model import open_model
from records.options import ModelOptions
from tuning.compare.compare import known_plans
from tuning.compare.config import CompareConfig, CompareData
from tuning.compare.data import open_data, survey_data
from tuning.compare.estimate import TIMED_STEPS, estimate_stages, plans_to_time
from tuning.config import Optimisation
from tuning.cost.estimate import OVERHEAD
from tuning.cost.flops import Shape, closed_form
from tuning.plan.resolve import resolve

SPEED = 1e9  # operations a second
CONFIG = CompareConfig(
    model=ModelOptions(name="random:tiny", dtype="float32"),
    plans=("start", "full", "last"),
    data=CompareData(scenes=6, score_scenes=3),
    optimisation=Optimisation(steps=3, batch_size=2, grad_accum=2),
    timing_rounds=2,
)


@pytest.fixture(autouse=True)
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuning.compare.estimate.matmul_speed", lambda device, dtype: SPEED)


def test_steps_and_timing_cost_the_operations_of_each_plan() -> None:
    llava = open_model(CONFIG.model, device="cpu", seed=0, weights=False)
    plans = {plan.name: plan for plan in known_plans(CONFIG, llava)}
    resolved = {name: resolve(plans[name], llava) for name in ("full", "last")}
    data = open_data(CONFIG.data)

    def stages(config: CompareConfig, remaining: list[str], untimed: list[str]) -> dict[str, float]:
        return estimate_stages(config, llava, data, resolved, remaining=remaining, untimed=untimed, device="cpu")

    survey = survey_data(data, llava, skip_bad=False).train_survey
    means = (round(2 * float(counts.mean())) for counts in (survey.pictured, survey.labelled))
    shape = Shape(2, int(survey.lengths.mean()), *means)
    seconds = {name: OVERHEAD * closed_form(llava, plan, shape).total / SPEED for name, plan in resolved.items()}
    assert seconds["last"] < 0.95 * seconds["full"]

    whole = stages(CONFIG, ["start", "full", "last"], ["full", "last"])
    assert whole["timing"] == pytest.approx(2 * TIMED_STEPS * (seconds["full"] + seconds["last"]))
    start = stages(CONFIG, ["start"], [])
    assert start["timing"] == 0
    training = whole["training and scoring plans"] - 3 * start["training and scoring plans"]
    assert training == pytest.approx(3 * 2 * (seconds["full"] + seconds["last"]))  # 3 steps of 2 batches

    # One epoch of six scenes in batches of two, two of them a step, has two steps.
    epoch = replace(CONFIG, optimisation=Optimisation(epochs=1.0, batch_size=2, grad_accum=2))
    one = stages(epoch, ["full"], [])["training and scoring plans"] - start["training and scoring plans"]
    assert one == pytest.approx(2 * 2 * seconds["full"])


def test_scoring_costs_a_forward_pass_of_every_question() -> None:
    llava = open_model(CONFIG.model, device="cpu", seed=0, weights=False)
    seconds = []
    for n in (3, 6, 12):
        config = replace(CONFIG, data=CompareData(scenes=6, score_scenes=n))
        found = estimate_stages(
            config, llava, open_data(config.data), {}, remaining=["start"], untimed=[], device="cpu"
        )
        seconds.append(found["training and scoring plans"])
    three, six, twelve = seconds
    assert six - three > 0
    assert twelve - six == pytest.approx(2 * (six - three), rel=0.2)  # the mean length of a few scenes varies


def test_only_plans_without_a_time_take_turns_with_full() -> None:
    llava = open_model(CONFIG.model, device="cpu", seed=0, weights=False)
    plans = [plan for plan in known_plans(CONFIG, llava) if plan.name in CONFIG.plans]
    assert plans_to_time(CONFIG, plans, {}) == ["full", "last"]
    assert plans_to_time(CONFIG, plans, {"full": 1}) == ["full", "last"]
    assert plans_to_time(CONFIG, plans, {"full": 1, "last": 1}) == []
    assert plans_to_time(replace(CONFIG, timing_rounds=0), plans, {}) == []
