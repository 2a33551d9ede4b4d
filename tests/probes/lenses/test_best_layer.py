"""The best layer of a lens: named where the object's words beat every control, and not in noise."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from probes.lenses.report_table import render_summary
from probes.lenses.score_example import COLUMNS, NEAREST
from probes.lenses.table import BEST, Curve, best_layer, tabulate

LAYERS, GROUPS, PATCHES = 12, 30, 8


def draw(rng: np.random.Generator, rates: np.ndarray) -> np.ndarray:
    """Hits of each layer and group; some groups' words are easier than others, for object and control alike."""
    easy = rng.gamma(1.0, 1.0, GROUPS)
    return rng.binomial(PATCHES, np.clip(rates[:, None] * easy, 0, 1)).astype(float)


def curve(rng: np.random.Generator, rates: np.ndarray, floor: float) -> Curve:
    controls = {words: draw(rng, np.full(LAYERS, floor)) for words in ("other", "frequency")}
    return Curve(draw(rng, rates), np.full((LAYERS, GROUPS), float(PATCHES)), controls)


def printed(table: pd.DataFrame) -> list[str]:
    """The cells of the single row of the printed table."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_summary(table))
    line = next(line for line in console.export_text().splitlines() if line.strip().startswith("logit"))
    return [cell for cell in line.split("  ") if cell.strip()]


def scored(rates: np.ndarray, *, seed: int = 0, controls: bool = True) -> pd.DataFrame:
    made = curve(np.random.default_rng(seed), rates, 0.02)
    kinds = {"object": made.hits, **(made.controls if controls else {})}
    rows = [
        {
            "lens": "logit", "id": str(g), "group": f"g{g}", "split": "test", "site": f"blocks.{layer}.hook_resid_post",
            "place": place, "words": words, "patches": PATCHES, "hit@1": 0, "hit@5": hits[layer, g],
            "hit@10": hits[layer, g], "reciprocal_rank": 0.0,
        }
        for layer in range(LAYERS) for g in range(GROUPS) for words, hits in kinds.items()
        for place in ("inside", "outside")
    ]  # fmt: skip
    nearest = pd.DataFrame(columns=[*NEAREST, "words"])
    return tabulate(pd.DataFrame(rows, columns=list(COLUMNS)), nearest, model="made", n_layers=LAYERS)


@pytest.mark.parametrize("floor", [0.002, 0.1])
def test_a_layer_is_named_in_few_curves_of_noise(floor: float) -> None:
    rng = np.random.default_rng(0)
    named = 0
    for seed in range(60):
        found = best_layer(curve(rng, np.full(LAYERS, floor), floor), seed=seed)
        named += int(found["p_max"].min() < 0.05)
    assert named <= 7, "5 % of 60 trials are 3, with a standard deviation of 1.7"


def test_a_planted_layer_is_found_with_its_place_and_a_corrected_height() -> None:
    rates = 0.02 + 0.4 * np.exp(-0.5 * (np.arange(LAYERS) - 8.0) ** 2)
    table = scored(rates)
    own = table.query("metric == 'hit@5' and place == 'inside' and words == 'object'").reset_index(drop=True)
    best = int(own["score"].to_numpy().argmax())
    assert own.loc[best, "p_max"] < 0.01 and abs(best - 8) <= 1
    assert own["best_share"].sum() == pytest.approx(1) and own["best_score"].notna().sum() == 1
    row = own.loc[best]
    assert row["best_lower"] < row["best_score"] <= row["score"] <= row["best_upper"]
    assert row["best_lower"] <= row["lower"]
    cells = printed(table)
    assert str(best) in cells[2] and f"{row['best_score']:.3f}" in cells[3]
    others = table.query("metric == 'mrr' or place != 'inside' or words != 'object'")
    assert others[list(BEST)].isna().all(axis=None)


def test_a_layer_that_is_just_named_is_lowered_by_what_it_owes_to_luck_and_others_are_not() -> None:
    rng, reached = np.random.default_rng(3), []
    size = (LAYERS, GROUPS)
    for level in (0.05, 0.12, 0.8):
        rates = np.where(np.arange(LAYERS) == 8, level, 0.05)[:, None]
        hits, other = (rng.binomial(PATCHES, rate, size).astype(float) for rate in (rates, 0.05))
        made = Curve(hits, np.full(size, float(PATCHES)), {"other": other})
        found = best_layer(made, seed=0)
        at = int(found["best_score"].argmax())
        alone = best_layer(made._replace(controls={}), seed=0).loc[at]  # nothing is tested, so nothing is named
        moved = (alone[["best_score", "best_lower", "best_upper"]] - found.loc[at]).dropna()
        assert (moved > -1e-9).all()
        reached.append((bool(found.loc[at, "p_max"] < 0.05), float(moved.max())))
    assert [named for named, _ in reached] == [False, True, True]
    assert reached[0][1] == 0 and reached[1][1] > 0.005 and reached[2][1] < 1e-3


def test_groups_that_all_have_one_rate_have_an_interval() -> None:
    patches = np.random.default_rng(0).integers(1, 9, 27) * 11.0
    found = best_layer(Curve((patches / 11 * 3)[None], patches[None], {"other": 0 * patches[None]}), seed=0)
    assert found["p_max"].iloc[0] < 0.05
    assert found["best_lower"].iloc[0] < found["best_score"].iloc[0] < found["best_upper"].iloc[0]


def test_a_curve_near_0_names_no_layer() -> None:
    cells = printed(scored(np.full(LAYERS, 0.004)))
    assert [cell.strip() for cell in cells] == ["logit", "test", "none", *["-"] * 6, str(GROUPS * PATCHES)]


def test_without_a_control_or_in_an_earlier_table_no_layer_is_named() -> None:
    rates = np.full(LAYERS, 0.4)
    for table in (scored(rates, controls=False), scored(rates).drop(columns=list(BEST))):
        assert [cell.strip() for cell in printed(table)][2:4] == ["not tested", "-"]


def test_a_control_that_a_group_lacks_is_not_taken_to_be_beaten() -> None:
    made = curve(np.random.default_rng(0), np.full(LAYERS, 0.4), 0.02)
    assert best_layer(made, seed=0)["p_max"].max() < 0.05
    made.controls["frequency"][:, 3] = np.nan
    assert best_layer(made, seed=0)["p_max"].isna().all()
    made.patches[:, 3] = 0  # the group has no patches of the object either: it is left out
    assert best_layer(made, seed=0)["p_max"].max() < 0.05
