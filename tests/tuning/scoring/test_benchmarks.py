"""Retention of plans on benchmarks: against the jackknife, over seeds, and in a comparison of plans."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from records.evaluation.intervals import score_estimate
from records.intervals import crossed, quantile
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tasks.benchmarks.layout.scores import Item, Scores
from tasks.errors import UserError
from tests.records.evaluation.test_intervals import jackknife, pope, without
from tests.tasks.benchmarks.bundle import write
from tuning.compare.compare import run_compare
from tuning.compare.config import CompareConfig, CompareData
from tuning.config import Optimisation, RunOptions
from tuning.scoring.benchmarks import MEAN, METRIC, benchmark_rows


def items(scores: Scores, plan: str, seed: int = 0, name: str = "pope") -> pd.DataFrame:
    """The table of one run."""
    rows = [{"benchmark": name, **item._asdict(), "weight": scores.weights[item.stratum]} for item in scores.items]
    return pd.DataFrame(rows).assign(plan=plan, seed=seed)


def test_retention_of_one_seed_has_the_interval_of_the_jackknife() -> None:
    full, band = pope(0.8), pope(0.7, seed=1)
    rows = benchmark_rows(pd.concat([items(full, "full"), items(band, "band")]))
    (own,) = rows["band"]
    assert own["retention"] == pytest.approx((band.main or 0) / (full.main or 1))
    assert (own["n"], own["seeds"], own["metric"]) == (60, 1, METRIC)
    ratios = []
    for i in range(60):
        left = [without(scores, f"picture {i}").main or 0.0 for scores in (band, full)]
        ratios.append(left[0] / left[1])
    # Both are first-order; they differ by terms of order 1/n, here about 2 %.
    assert (own["upper"] - own["lower"]) / 2 == pytest.approx(float(quantile(59)) * jackknife(ratios), rel=0.03)
    assert "this seed only" in own["interval"]
    found = score_estimate(band)
    assert found is not None and (own["score_lower"], own["score_upper"]) == (found.lower, found.upper)
    (base,) = rows["full"]
    assert base["retention"] == 1 and np.isnan(base["lower"])


def test_several_seeds_add_their_variance_and_only_shared_ones_are_paired() -> None:
    skill = {"full": (0.8, 0.82, 0.78), "band": (0.6, 0.8)}
    made = {name: [pope(s, seed=n) for n, s in enumerate(own)] for name, own in skill.items()}
    table = pd.concat([items(own, name, seed) for name, runs in made.items() for seed, own in enumerate(runs)])
    (band,) = benchmark_rows(table)["band"]
    mains = {name: np.array([own.main for own in runs]) for name, runs in made.items()}
    ratio = mains["band"].mean() / mains["full"][:2].mean()
    assert band["retention"] == pytest.approx(ratio)
    assert band["score"] == pytest.approx(mains["band"].mean())
    # Two seeds that differ by much leave one degree of freedom or little more: the interval is mostly about seeds.
    seeds = (mains["band"] - ratio * mains["full"][:2]) / mains["full"][:2].mean()
    only = crossed(np.repeat(seeds[:, None], 2, axis=1))
    assert band["upper"] - band["lower"] > 2 * quantile(only.degrees) * np.sqrt(only.variance) * 0.3
    rows = benchmark_rows(pd.concat([table, items(pope(0.5, seed=9), "start")]), untrained=("start",))
    assert rows["start"][0]["retention"] == pytest.approx((pope(0.5, seed=9).main or 0) / mains["full"].mean())
    alone = pd.concat([items(made["full"][0], "full", 0), items(made["band"][1], "band", 1)])
    assert benchmark_rows(alone)["band"][0]["interval"] == "none: no seed is shared with full"


def test_retention_of_right_answers_has_an_interval_also_where_two_plans_answer_alike() -> None:
    answers = Scores(tuple(Item("all", float(i % 4 > 0), 1.0, f"picture {i}") for i in range(40)), {"all": 100.0})
    (own,) = benchmark_rows(pd.concat([items(answers, "full"), items(answers, "band")]))["band"]
    assert own["lower"] < 1 == own["retention"] < own["upper"]
    assert own["interval"] == "95% t over pictures, paired with full; this seed only"
    seeds = [items(answers, plan, seed) for plan in ("full", "band") for seed in (0, 1)]
    assert benchmark_rows(pd.concat(seeds))["band"][0]["interval"] == "95% t over pictures and seeds, paired with full"


def test_a_plan_that_scores_nothing_has_no_interval_and_nor_has_a_mean_with_it() -> None:
    full, band = items(pope(0.8), "full"), items(pope(0.7, seed=1), "band")
    nothing = band.assign(above=0.0)
    parts = [part.assign(benchmark="pope") for part in (full, nothing)]
    parts += [part.assign(benchmark="other") for part in (full, band)]
    first, second, mean = benchmark_rows(pd.concat(parts))["band"]
    assert (first["retention"], first["interval"]) == (0, "none: no picture or seed moves it")
    assert np.isnan(first["upper"]) and second["upper"] > second["retention"]
    assert mean["interval"] == "none: a benchmark has none" and np.isnan(mean["upper"])
    assert mean["retention"] == pytest.approx(second["retention"] / 2)
    alone = pd.concat([own[own["group"] == "picture 0"] for own in (full, band)])
    assert benchmark_rows(alone)["band"][0]["interval"] == "none: one picture"


def test_the_mean_of_retentions_adds_variances_of_independent_benchmarks() -> None:
    runs = [items(pope(0.8), "full"), items(pope(0.7, seed=1), "band")]
    table = pd.concat([part.assign(benchmark=name) for name in ("pope", "other") for part in runs])
    first, second, mean = benchmark_rows(table)["band"]
    assert mean["condition"] == MEAN
    assert mean["retention"] == pytest.approx((first["retention"] + second["retention"]) / 2)
    assert mean["upper"] - mean["lower"] == pytest.approx((first["upper"] - first["lower"]) / 2**0.5)


def test_scores_on_other_questions_are_not_compared() -> None:
    table = pd.concat([items(pope(0.8), "full"), items(without(pope(0.7), "picture 3"), "band")])
    with pytest.raises(UserError, match="same questions of pope"):
        benchmark_rows(table)


def test_compare_scores_plans_on_a_benchmark(tmp_path: Path) -> None:
    write_pope(tmp_path / "pope", scene_pictures(2, size=28), ending="?")
    data = CompareData(scenes=2, score_scenes=1, eval_benchmarks=(f"benchmark:pope={tmp_path / 'pope'}",), eval_limit=4)
    settings = CompareConfig(
        ModelOptions("random:tiny"), plans=("start", "full"), data=data, timing_rounds=0, out=tmp_path / "compare",
        optimisation=Optimisation(steps=1, batch_size=2), run=RunOptions(save_every=0),
    )  # fmt: skip
    finished = run_compare(settings)
    assert isinstance(finished, FinishedRun)
    own = finished.results[finished.results["condition"] == "pope"].set_index("plan")
    assert own.loc["full", "retention"] == 1 and own.loc["start", "metric"] == METRIC
    assert own["n"].tolist() == [2, 2], "four questions about two pictures"
    saved = pd.read_parquet(tmp_path / "compare" / "runs" / "full-seed0" / "benchmarks.parquet")
    assert set(saved["group"]) and len(saved) == 4
    assert "pope" in pd.read_csv(tmp_path / "compare" / "compare.csv")["condition"].tolist()
    run_compare(settings)  # the same labels
    for path in (tmp_path / "pope" / "coco").iterdir():
        path.write_text(path.read_text().replace('"yes"', '"?"').replace('"no"', '"yes"').replace('"?"', '"no"'))
    with pytest.raises(UserError, match=r"a run in .* that differs: data\.labels of pope was"):
        run_compare(settings)  # stored scores belong to the labels before


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (("pope=x",), "eval must be benchmark:NAME=FOLDER, got 'pope=x'"),
        (("benchmark:pope=gone",), "benchmark must name an existing folder"),
        (("benchmark:gqa=GQA",), "eval must name benchmarks that can be scored here, got gqa"),
    ],
)
def test_benchmarks_that_cannot_be_scored_are_refused_before_training(
    specs: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    row = {"question_id": 1, "text": "Q?", "category": "default"}
    folder = write(tmp_path / "gqa", {"llava_gqa_testdev_balanced.jsonl": [row]})
    named = tuple(spec.replace("GQA", str(folder)) for spec in specs)
    settings = CompareConfig(
        ModelOptions("random:tiny"), data=CompareData(scenes=2, eval_benchmarks=named), out=tmp_path / "compare"
    )  # fmt: skip
    with pytest.raises(UserError, match=said):
        run_compare(settings)
    assert not (tmp_path / "compare").exists()
