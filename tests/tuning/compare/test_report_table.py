"""The printed table of a comparison."""

import numpy as np
import pandas as pd
import pytest
from rich.table import Table

from tests.figures.tables import compare_table
from tuning.compare.report_table import render_table
from tuning.scoring.retention import INTERVAL, ONE_SEED, ONE_TEXT, REFERENCE, SCORE, SCORE_ONE_SEED, UNTRAINED


def finished(**changes: object) -> pd.DataFrame:
    return compare_table().assign(flops_ratio=1.0, step_time_ratio=1.0, trainable=1, **changes)


def cells(table: Table, header: str) -> list[str]:
    (column,) = (column for column in table.columns if column.header == header)
    return [str(cell) for cell in column.cells]


@pytest.mark.parametrize(
    ("seeds", "about", "says_so"),
    [(1, ONE_SEED, True), (3, ONE_SEED, True), (1, UNTRAINED, False), (3, INTERVAL, False)],
)
def test_an_interval_without_seeds_says_so_by_what_it_is_about(seeds: int, about: str, says_so: bool) -> None:
    table = finished(seeds=seeds, interval=about)
    retention = [cell for cell in cells(render_table(table), "retention (seen)") if "[" in cell]
    assert retention
    assert all(cell.endswith("this seed only") == says_so for cell in retention)


@pytest.mark.parametrize(("about", "suffix"), [(SCORE, ""), (SCORE_ONE_SEED, " this seed only")])
def test_each_score_has_its_interval(about: str, suffix: str) -> None:
    table = finished(score_lower=0.25, score_upper=0.75, score_interval=about)
    for condition in ("seen", "text"):
        scores = table.query(f"condition == '{condition}' and family == 'all'")["score"]
        assert cells(render_table(table), condition) == [f"{score:.3f} [0.250, 0.750]{suffix}" for score in scores]


def test_a_number_without_an_interval_says_so_and_the_caption_says_why() -> None:
    why = "none: no picture or seed moves it"
    table = finished(lower=np.nan, upper=np.nan, interval=why, score_interval=SCORE)
    table.loc[table["plan"] == "full", "interval"] = REFERENCE
    passage = table["condition"] == "passage"
    table.loc[passage, ["score_lower", "score_upper"]] = np.nan
    table.loc[passage, "score_interval"] = ONE_TEXT
    shown = render_table(table)
    retention = dict(zip(cells(shown, "plan"), cells(shown, "retention (seen)"), strict=True))
    assert "no interval" not in retention.pop("full")
    assert retention
    assert all(cell.endswith(", no interval") for cell in retention.values())
    assert all(cell.endswith(", no interval") for cell in cells(shown, "passage"))
    assert str(shown.caption).splitlines() == [
        f"seen, text: {SCORE}",
        f"retention (seen): {' | '.join(table['interval'].unique())}",
        f"passage: {ONE_TEXT}",
    ]


def test_a_table_of_an_earlier_version_has_no_caption() -> None:
    shown = render_table(finished().drop(columns=["score_lower", "score_upper", "interval"]))
    assert not shown.caption
    assert "[" not in "".join(cells(shown, "seen"))
