"""Scores and retention: a planted ratio lies inside its interval, and pairing makes that narrower."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.calibration import PLANS, plan_lines, plans_trial
from tasks.errors import UserError
from tuning.scoring.retention import (
    DIFFERENCE_ONE_SEED,
    INTERVAL,
    NO_PAIR,
    ONE_SEED,
    ONE_TEXT,
    REFERENCE,
    SCORE_ONE_SEED,
    TEXT,
    UNTRAINED,
    differences,
    summarise,
)


def answers(rates: dict[str, float], *, n: int = 400, seeds: int = 3, paired: bool = True) -> pd.DataFrame:
    """Answers whose plans are right at given rates; paired plans fail on the same scenes."""
    rows = []
    for seed in range(seeds):
        for index, (plan, rate) in enumerate(rates.items()):
            rng = np.random.default_rng([seed, 0 if paired else index + 1])
            draws = rng.random(n)
            rows += [
                {
                    "plan": plan,
                    "seed": seed,
                    "condition": "seen",
                    "id": f"s{i}",
                    "family": "what",
                    "right": float(d < rate),
                }
                for i, d in enumerate(draws)
            ]
    return pd.DataFrame(rows)


WORDS = pd.DataFrame([{"plan": plan, "seed": 0, "value": -3.0} for plan in ("full", "band", "same")])


def test_retention_finds_a_planted_ratio_inside_its_interval() -> None:
    table = summarise(answers({"full": 0.8, "band": 0.6, "same": 0.8}), WORDS)
    rows = table[(table["family"] == "all") & (table["condition"] == "seen")].set_index("plan")
    assert rows.loc["band", "retention"] == pytest.approx(0.75, abs=0.03)
    assert rows.loc["band", "lower"] < 0.75 < rows.loc["band", "upper"]
    assert rows.loc["band", "upper"] < 1
    same = rows.loc["same"]  # not one answer differs, which 400 scenes do not make certain
    assert same["retention"] == 1
    assert 0.99 < same["lower"] < 1 < same["upper"] < 1.01
    assert rows.loc["full", "interval"] == REFERENCE
    assert (rows["score_lower"] <= rows["score"]).all()
    assert (rows["score"] <= rows["score_upper"]).all()
    assert set(rows["n"]) == {400}
    assert set(rows["seeds"]) == {3}


def test_pairing_makes_the_interval_narrower() -> None:
    widths = []
    for paired in (True, False):
        table = summarise(answers({"full": 0.8, "band": 0.7}, seeds=1, paired=paired), WORDS)
        row = table[(table["plan"] == "band") & (table["family"] == "all") & (table["condition"] == "seen")].iloc[0]
        widths.append(row["upper"] - row["lower"])
    assert widths[0] < 0.8 * widths[1]


def test_retention_of_nothing_is_undefined() -> None:
    table = summarise(answers({"full": 0.0, "band": 0.5}, n=20), WORDS)
    row = table[(table["plan"] == "band") & (table["condition"] == "seen")].iloc[0]
    assert np.isnan(row["retention"])
    assert np.isnan(row["lower"])


def by_seed(seeds: dict[str, dict[int, float]], *, n: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers and words of plans whose score with a seed is given: every answer is that right, in every scene."""
    rows = [
        {"plan": plan, "seed": seed, "condition": "seen", "id": f"s{i}", "family": "what", "right": score}
        for plan, own in seeds.items() for seed, score in own.items() for i in range(n)
    ]  # fmt: skip
    words = [
        {"plan": plan, "seed": seed, "value": np.log(score)}
        for plan, own in seeds.items()
        for seed, score in own.items()
    ]
    return pd.DataFrame(rows), pd.DataFrame(words)


FULL = {0: 0.8, 1: 0.4, 2: 0.6}


@pytest.mark.parametrize(
    ("own", "score", "interval"),
    [
        (FULL, 0.6, INTERVAL),
        ({0: 0.8}, 0.8, ONE_SEED),
        ({0: 0.8, 2: 0.6}, 0.7, INTERVAL),
        ({0: 0.8, 7: 0.2}, 0.5, ONE_SEED),
    ],
)
def test_retention_is_over_the_seeds_that_both_have(own: dict[int, float], score: float, interval: str) -> None:
    """A plan that scores as full does, seed by seed: the ratio is 1."""
    table = summarise(*by_seed({"full": FULL, "band": own}))
    rows = table[(table["plan"] == "band") & (table["family"] != "all")].set_index("condition")
    seen, passage = rows.loc["seen"], rows.loc["passage"]
    assert [seen["retention"], passage["retention"]] == pytest.approx([1, 1])
    assert seen["lower"] < 1 < seen["upper"]
    assert [seen["score"], passage["score"]] == pytest.approx([score, score])
    assert seen["score_lower"] < score < seen["score_upper"]
    assert (rows["seeds"] == len(own)).all()
    assert rows["interval"].tolist() == [interval, TEXT if interval == INTERVAL else ONE_TEXT]
    if len(own) == 1:
        assert rows["score_interval"].tolist() == [SCORE_ONE_SEED, ONE_TEXT]
        assert passage[["score_lower", "score_upper", "lower", "upper"]].isna().all()


def test_seeds_that_differ_make_the_interval_wider() -> None:
    widths = []
    for spread in (0.0, 0.1):
        seeds = {0: 0.6 - spread, 1: 0.6, 2: 0.6 + spread}
        row = summarise(*by_seed({"full": dict.fromkeys(range(3), 0.8), "band": seeds})).set_index(["plan", "family"])
        widths.append(row.loc[("band", "what"), ["lower", "upper"]].diff().iloc[1])
    assert widths[1] > 1.3 * widths[0]


@pytest.mark.parametrize("regime", PLANS)
def test_intervals_of_plans_cover_the_truth(regime: str) -> None:
    for found in plan_lines(regime, [plans_trial(PLANS[regime], seed, regime) for seed in range(40)]):
        assert found.share >= 0.85, found  # 40 trials of 95 %: three standard errors are 0.1


def test_as_many_seeds_are_no_pairs_unless_they_are_the_same() -> None:
    table = summarise(*by_seed({"full": {0: 0.4, 1: 0.8}, "band": {2: 0.4, 3: 0.8}}))
    rows = table[table["plan"] == "band"]
    assert rows[["retention", "lower", "upper"]].isna().all(axis=None)
    assert set(rows["interval"]) == {NO_PAIR}
    assert rows["score"].tolist() == pytest.approx([0.6] * 3)


def test_what_trains_nothing_is_compared_with_all_seeds_of_full() -> None:
    table = summarise(*by_seed({"full": FULL, "start": {0: 0.3}}), untrained=("start",))
    rows = table[table["plan"] == "start"].set_index("family")
    assert rows["retention"].tolist() == pytest.approx([0.5] * 3)
    assert rows["interval"].tolist() == [UNTRAINED, UNTRAINED, TEXT]
    assert (rows["lower"] < 0.3 / 0.8).all()  # the seeds of full differ
    assert (rows["upper"] > 0.3 / 0.4).all()
    once = summarise(*by_seed({"full": {1: 0.4}, "start": {0: 0.3}}), untrained=("start",))
    row = once[(once["plan"] == "start") & (once["family"] == "all")].iloc[0]
    assert row["retention"] == pytest.approx(0.75)
    assert row["interval"] == ONE_SEED


def test_scenes_stay_paired_where_a_plan_has_fewer_seeds() -> None:
    """Plans that fail on the same scenes: without pairs the ratio of two equal plans would vary."""
    made = answers({"full": 0.5, "band": 0.5, "start": 0.5}, n=40)
    made = made[(made["plan"] == "full") | (made["seed"] == 0)]
    table = summarise(made, WORDS.replace({"same": "start"}), untrained=("start",))
    rows = table[(table["family"] == "all") & (table["condition"] == "seen")].set_index("plan")
    assert rows.loc["band", "retention"] == 1
    assert rows.loc["band", "upper"] - rows.loc["band", "lower"] < 0.4  # unpaired it would be above 0.6
    assert rows.loc["band", "score_upper"] - rows.loc["band", "score_lower"] > 0.2  # scenes do vary
    assert rows.loc["start", "lower"] < 1 < rows.loc["start", "upper"]


def test_differences_are_paired_and_find_a_planted_one() -> None:
    given = answers({"full": 0.8, "band": 0.6, "late": 0.5})
    table = differences(given, "band").set_index(["plan", "family"])
    assert table.index.tolist() == [(p, f) for f in ("what", "all") for p in ("full", "late")]
    assert (table["seeds"] == 3).all()
    assert (table["n"] == 400).all()
    means = given.groupby("plan")["right"].mean()
    row = table.loc[("late", "all")]
    assert row["difference"] == pytest.approx(means["band"] - means["late"])
    assert row["lower"] < 0.1 < row["upper"]
    unpaired = differences(answers({"band": 0.6, "late": 0.5}, paired=False), "band").iloc[-1]
    assert row["upper"] - row["lower"] < 0.8 * (unpaired["upper"] - unpaired["lower"])
    with pytest.raises(ValueError, match="plan must be one of full, band, late, got 'first'"):
        differences(given, "first")


def test_differences_are_over_the_seeds_that_both_have() -> None:
    given, _ = by_seed({"band": {0: 0.8, 1: 0.4}, "late": {1: 0.3, 2: 0.9}, "else": {5: 0.1}})
    table = differences(given, "band")
    assert set(table["plan"]) == {"late"}
    assert table["difference"].tolist() == pytest.approx([0.1, 0.1])
    assert set(table["interval"]) == {DIFFERENCE_ONE_SEED}
    assert (table["seeds"] == 1).all()


def test_every_answer_counts_alike_and_one_without_a_family_counts_in_all() -> None:
    """Pictures with one answer and with three: a share of answers, not a mean of pictures."""
    rows = [
        {"plan": plan, "seed": 0, "condition": "mine", "id": name, "family": family, "right": right}
        for plan in ("full", "band")
        for name, family, right in [("a", "what", 1.0), ("b", "", 0.0), ("b", "", 0.0), ("b", "what", 1.0)]
    ]
    table = summarise(pd.DataFrame(rows), WORDS, chance={"mine": {"what": 0.5}, "seen": {"": 0.1}})
    own = table[(table["plan"] == "band") & (table["condition"] == "mine")].set_index("family")
    assert own["score"].to_dict() == {"what": 1.0, "all": 0.5}
    assert own["n"].tolist() == [2, 2]
    assert own["chance"].to_dict() == pytest.approx({"what": 0.5, "all": np.nan}, nan_ok=True)
    assert own.loc["all", "score_upper"] - own.loc["all", "score_lower"] > 0.8  # two pictures say next to nothing


def test_plans_that_were_asked_other_things_are_refused() -> None:
    given, words = by_seed({"full": {0: 0.8, 1: 0.4}, "band": {0: 0.8}})
    gone = given[~((given["plan"] == "band") & (given["id"] == "s3"))]
    for compare in (lambda: summarise(gone, words), lambda: differences(gone, "full")):
        with pytest.raises(UserError, match="plans must be asked the same"):
            compare()
    gone = given[~((given["plan"] == "full") & (given["seed"] == 1) & (given["id"] == "s3"))]
    with pytest.raises(UserError, match="every seed of a plan must be asked the same, got others in 'seen'"):
        summarise(gone, words)


def test_what_has_no_seed_has_no_difference() -> None:
    given, _ = by_seed({"band": {0: 0.8}, "start": {0: 0.3}})
    assert differences(given, "band", untrained=("start",)).empty
    assert set(differences(given, "band")["plan"]) == {"start"}
