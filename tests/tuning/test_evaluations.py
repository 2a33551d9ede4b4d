"""The table of a run's evaluations: its numbers, its intervals, and what becomes of it when the run goes on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.llava import load
from tests.conftest import tiny_config
from tests.tuning.conftest import samples_of
from tuning.apply import apply_plan
from tuning.config import Optimisation, Running
from tuning.evaluations import EVALUATIONS, add_rows, in_log, tabulate, trim_rows
from tuning.plan import LayerPlan, resolve
from tuning.sources import SceneMix, SceneQuestions
from tuning.trainer import train


def answers(n: int = 40) -> pd.DataFrame:
    """Two questions on each of ``n`` samples: colours always right, counts right in every fourth sample."""
    rows = [
        {"id": f"s{k}", "family": family, "right": right, "log_prob": log_prob, "tokens": tokens}
        for k in range(n)
        for family, right, log_prob, tokens in (("colour", 1.0, -0.5, 1), ("count", float(k % 4 == 0), -6.0, 3))
    ]
    return pd.DataFrame(rows)


def test_scores_are_shares_of_answers_and_nats_over_tokens() -> None:
    rows = tabulate(answers(), step=7, name="seen").set_index(["family", "metric"])
    assert list(rows.index.get_level_values("family").unique()) == ["colour", "count", "all"]
    scores = rows["score"]
    assert scores["colour", "accuracy"] == 1.0
    assert scores["count", "accuracy"] == pytest.approx(0.25)
    assert scores["all", "accuracy"] == pytest.approx(0.625)
    assert scores["count", "log_prob_per_token"] == pytest.approx(-2.0)
    assert scores["all", "log_prob_per_token"] == pytest.approx(-6.5 / 4)
    assert set(rows["n"]) == {40} and set(rows["step"]) == {7}
    assert in_log(rows.reset_index()) == pytest.approx(
        {"seen/colour": 1.0, "seen/count": 0.25, "seen/all": 0.625, "seen/log_prob_per_token": -1.625}
    )


def test_the_interval_is_that_of_independent_samples_and_none_where_all_agree() -> None:
    rows = tabulate(answers(400), step=0, name="seen").set_index(["family", "metric"])
    count = rows.loc[("count", "accuracy")]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)  # normal approximation of the binomial
    assert count["upper"] - count["score"] == pytest.approx(half, rel=0.1)
    assert count["score"] - count["lower"] == pytest.approx(half, rel=0.1)
    sure = rows.loc[("colour", "accuracy")]
    assert (sure["lower"], sure["upper"]) == (1.0, 1.0)


def test_an_evaluation_done_again_replaces_its_rows_and_trimming_forgets_later_ones(tmp_path: Path) -> None:
    trim_rows(tmp_path, 3)  # nothing there: nothing to forget
    for step in (2, 4):
        for name in ("seen", "None"):
            add_rows(tmp_path, tabulate(answers(), step=step, name=name))
    first = pd.read_csv(tmp_path / EVALUATIONS, keep_default_na=False)
    add_rows(tmp_path, tabulate(answers(8), step=4, name="seen"))
    again = pd.read_csv(tmp_path / EVALUATIONS, keep_default_na=False)
    assert len(again) == len(first) == 4 * 6
    changed = again[(again["step"] == 4) & (again["set"] == "seen")]
    assert set(changed["n"]) == {8} and set(again.drop(changed.index)["n"]) == {40}
    trim_rows(tmp_path, 2)
    kept = pd.read_csv(tmp_path / EVALUATIONS, keep_default_na=False)
    pd.testing.assert_frame_equal(kept, first[first["step"] == 2].reset_index(drop=True))


def test_a_resumed_run_has_the_table_and_the_log_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def go(resume: Path | None = None) -> None:
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        resolved = resolve(LayerPlan("1"), llava)
        apply_plan(llava, resolved)
        train(
            llava, resolved, samples_of(llava, SceneMix(6, questions=1)), folder=tmp_path, resume=resume,
            optimisation=Optimisation(steps=3, batch_size=2, lr=1e-2, projector_lr=1e-2),
            running=Running(save_every=2, eval_every=1, log_every=1, keep=2),
            eval_sets={"seen": samples_of(llava, SceneQuestions(2))},
        )  # fmt: skip

    go()
    found = [(tmp_path / name).read_bytes() for name in (EVALUATIONS, "log.jsonl")]
    table = pd.read_csv(tmp_path / EVALUATIONS)
    assert sorted(set(table["step"])) == [1, 2, 3]
    assert table.groupby("step")["score"].apply(tuple).nunique() == 3  # what is found changes on the way
    go(resume=tmp_path / "checkpoint-2")
    assert [(tmp_path / name).read_bytes() for name in (EVALUATIONS, "log.jsonl")] == found
