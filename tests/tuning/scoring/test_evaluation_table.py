"""The table of a run's evaluations: its numbers, its intervals, and what becomes of it when the run goes on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.loading.load import load
from tasks.errors import UserError
from tests.conftest import tiny_config
from tests.tuning.conftest import samples_of
from tuning.config import Optimisation, RunOptions
from tuning.data.scene_mix import SceneMix, SceneQuestions
from tuning.plan.apply import apply_plan
from tuning.plan.plan import LayerPlan
from tuning.plan.resolve import resolve
from tuning.scoring.evaluation_table import EVALUATIONS, add_rows, in_log, score_sets, tabulate, trim_rows
from tuning.training.train import Trained, train


def answers(n: int = 40) -> pd.DataFrame:
    """Two questions on each of ``n`` samples: colours always right, counts right in every fourth sample."""
    rows = [
        {"id": f"s{k}", "group": f"s{k}", "family": family, "right": right, "log_prob": log_prob, "tokens": tokens}
        for k in range(n)
        for family, right, log_prob, tokens in (("colour", 1.0, -0.5, 1), ("count", float(k % 4 == 0), -6.0, 3))
    ]
    return pd.DataFrame(rows)


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / EVALUATIONS, dtype={"set": str}, keep_default_na=False, na_values={"chance": [""]})


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


def test_the_interval_is_that_of_independent_samples_and_has_a_width_where_all_agree() -> None:
    rows = tabulate(answers(400), step=0, name="seen").set_index(["family", "metric"])
    count = rows.loc[("count", "accuracy")]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)  # normal approximation of the binomial
    assert count["upper"] - count["score"] == pytest.approx(half, rel=0.1)
    assert count["score"] - count["lower"] == pytest.approx(half, rel=0.1)
    sure = rows.loc[("colour", "accuracy")]
    assert (sure["lower"], sure["upper"]) == pytest.approx((0.99, 1.0), abs=1e-3)


def test_rows_about_one_picture_are_drawn_together() -> None:
    table = answers(400)
    table["group"] = [f"picture {int(name[1:]) // 4}" for name in table["id"]]  # right once in each picture
    rows = tabulate(table, step=0, name="seen").set_index(["family", "metric"])
    count = rows.loc[("count", "accuracy")]
    assert (count["n"], count["score"]) == (100, 0.25)
    alone = tabulate(answers(400), step=0, name="seen").set_index(["family", "metric"]).loc[("count", "accuracy")]
    together = table.assign(group=[f"picture {int(name[1:]) % 100}" for name in table["id"]])  # all right or all wrong
    same = tabulate(together, step=0, name="seen").set_index(["family", "metric"]).loc[("count", "accuracy")]
    assert same["upper"] - same["lower"] > 1.9 * (alone["upper"] - alone["lower"])  # a fourth of the units


def test_answers_without_a_family_count_in_all_alone_and_chance_is_the_mean_over_answers() -> None:
    table = answers()
    table.loc[table["family"] == "count", "family"] = ""
    rows = tabulate(table, step=0, name="eval")
    assert list(rows["family"].unique()) == ["colour", "all"]
    rows = tabulate(answers(), step=0, name="seen", chance={"colour": 0.5, "count": 0.25})
    known = rows.dropna(subset="chance").set_index("family")["chance"]
    assert known.to_dict() == {"colour": 0.5, "count": 0.25, "all": 0.375}
    assert tabulate(answers(), step=0, name="seen", chance={"colour": 0.5})["chance"].count() == 1


def test_an_evaluation_done_again_replaces_its_rows_and_trimming_forgets_later_ones(tmp_path: Path) -> None:
    trim_rows(tmp_path, 3)  # nothing there: nothing to forget
    for step in (2, 4):
        for name in ("1", "None"):
            add_rows(tmp_path, tabulate(answers(), step=step, name=name, data="a"))
    first = read(tmp_path)
    add_rows(tmp_path, tabulate(answers(8), step=4, name="1", data="a"))
    again = read(tmp_path)
    assert len(again) == len(first) == 4 * 6
    changed = again[(again["step"] == 4) & (again["set"] == "1")]
    assert set(changed["n"]) == {8} and set(again.drop(changed.index)["n"]) == {40}
    trim_rows(tmp_path, 2)
    pd.testing.assert_frame_equal(read(tmp_path), first[first["step"] == 2].reset_index(drop=True))
    trim_rows(tmp_path, 1)
    assert not (tmp_path / EVALUATIONS).exists()


def test_rows_about_other_data_under_the_same_name_do_not_mix(tmp_path: Path) -> None:
    for step, data in ((1, "a"), (2, "a"), (3, "b")):
        add_rows(tmp_path, tabulate(answers(), step=step, name="eval", data=data))
    assert set(zip(read(tmp_path)["step"], read(tmp_path)["data"], strict=True)) == {(3, "b")}


def test_an_answer_without_a_probability_is_an_error_that_names_it() -> None:
    llava = load(tiny_config(grouped=True), seed=0, validate=False)
    with torch.no_grad():
        llava.blocks[0].mlp.down_proj.weight[0, 0] = float("nan")  # type: ignore[union-attr, index, operator]
    with pytest.raises(UserError, match=r"log-probability must be finite, got nan for an answer of .* in set 'seen'"):
        score_sets(llava, {"seen": samples_of(llava, SceneQuestions(1))}, step=5)


def test_a_resumed_run_has_the_table_and_the_log_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def go(resume: Path | None = None) -> Trained:
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        resolved = resolve(LayerPlan("1"), llava)
        apply_plan(llava, resolved)
        return train(
            llava, resolved, samples_of(llava, SceneMix(10, questions=1)), folder=tmp_path, resume=resume,
            optimisation=Optimisation(steps=3, batch_size=2, lr=1e-2, projector_lr=1e-2),  # an epoch would have five
            options=RunOptions(save_every=2, log_every=1, keep=9), eval_every=1,
            eval_sets={"seen": samples_of(llava, SceneQuestions(2))},
        )  # fmt: skip

    def spoil() -> None:
        add_rows(tmp_path, tabulate(answers(), step=99, name="gone", data="x"))
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 99, "loss": 1.0}\n{"step": 3, "lo')

    spoil()  # what a run left that was killed before its first checkpoint
    assert go().steps == 3
    names = [EVALUATIONS, "log.jsonl"]
    found = [(tmp_path / name).read_bytes() for name in names]
    table = read(tmp_path)
    assert sorted(set(table["step"])) == [1, 2, 3]
    assert table.groupby("step")["score"].apply(tuple).nunique() == 3  # what is found changes on the way
    assert table["chance"].notna().any() and set(table["data"]) == {SceneQuestions(2).digest}
    spoil()
    assert go(tmp_path / "checkpoint-2").steps == 3
    assert [(tmp_path / name).read_bytes() for name in names] == found
    spoil()
    ended = go(tmp_path / "checkpoint-3")  # nothing is left to do
    assert ended.steps == 3 and sorted(ended.losses) == [1, 2, 3]
    assert [(tmp_path / name).read_bytes() for name in names] == found
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_finished_run_that_is_resumed_keeps_its_weights_and_is_scored_once(tmp_path: Path) -> None:
    def go(resume: Path | None = None) -> dict[str, torch.Tensor]:
        llava = load(tiny_config(grouped=True), seed=0, validate=False)
        resolved = resolve(LayerPlan("1"), llava)
        apply_plan(llava, resolved)
        train(
            llava, resolved, samples_of(llava, SceneMix(10, questions=1)), folder=tmp_path, resume=resume,
            optimisation=Optimisation(steps=2, batch_size=2, lr=1e-2, projector_lr=1e-2),
            options=RunOptions(save_every=1, log_every=1), eval_sets={"seen": samples_of(llava, SceneQuestions(2))},
        )  # fmt: skip
        return {name: tensor.clone() for name, tensor in llava.model.state_dict().items()}

    first, log = go(), (tmp_path / "log.jsonl").read_text()
    again = go(tmp_path / "checkpoint-2")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert (tmp_path / "log.jsonl").read_text() == log and log.count("eval/seen/all") == 1
