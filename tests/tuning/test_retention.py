"""Scores and retention: a planted ratio lies inside its interval, and pairing makes that narrower."""

import numpy as np
import pandas as pd
import pytest

from tuning.retention import summarise


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
    assert rows.loc["same", ["retention", "lower", "upper"]].tolist() == [1, 1, 1]
    assert (rows["score_lower"] <= rows["score"]).all()
    assert (rows["score"] <= rows["score_upper"]).all()
    assert set(rows["n"]) == {400}
    assert set(rows["seeds"]) == {3}


def test_pairing_makes_the_interval_narrower() -> None:
    widths = []
    for paired in (True, False):
        table = summarise(answers({"full": 0.8, "band": 0.7}, paired=paired), WORDS)
        row = table[(table["plan"] == "band") & (table["family"] == "all") & (table["condition"] == "seen")].iloc[0]
        widths.append(row["upper"] - row["lower"])
    assert widths[0] < 0.8 * widths[1]


def test_retention_of_nothing_is_undefined() -> None:
    table = summarise(answers({"full": 0.0, "band": 0.5}, n=20), WORDS)
    row = table[(table["plan"] == "band") & (table["condition"] == "seen")].iloc[0]
    assert np.isnan(row["retention"])
    assert np.isnan(row["lower"])


def test_as_many_seeds_are_no_pairs_unless_they_are_the_same() -> None:
    """A plan that is right where full is, seed by seed: the ratio is 1 in every draw of pairs, and of those alone."""
    made = pd.concat([answers({"full": 1.0, "band": 1.0}, n=20, seeds=1).assign(seed=s, right=s / 4) for s in (1, 2)])
    rows = []
    for shift in (0, 2):
        moved = made.assign(seed=made["seed"] + shift * (made["plan"] == "band"))
        table = summarise(moved, WORDS)
        rows.append(table[(table["plan"] == "band") & (table["condition"] == "seen")].iloc[0])
    assert rows[0][["retention", "lower", "upper"]].tolist() == [1, 1, 1]
    assert rows[1]["lower"] < 0.7 < 1 < 1.4 < rows[1]["upper"]
