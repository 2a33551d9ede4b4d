"""The printed table of a comparison."""

import pytest

from tests.figures.tables import compare_table
from tuning.compare.report_table import render_table
from tuning.scoring.retention import INTERVAL, ONE_SEED, UNTRAINED


@pytest.mark.parametrize(
    ("seeds", "about", "says_so"),
    [(1, ONE_SEED, True), (3, ONE_SEED, True), (1, UNTRAINED, False), (3, INTERVAL, False)],
)
def test_an_interval_without_seeds_says_so_by_what_it_is_about(seeds: int, about: str, says_so: bool) -> None:
    table = compare_table().assign(seeds=seeds, interval=about, flops_ratio=1.0, step_time_ratio=1.0, trainable=1)
    cells = [str(cell) for column in render_table(table).columns for cell in column.cells]
    retention = [cell for cell in cells if "[" in cell and ", " in cell]
    assert retention
    assert all(cell.endswith("scenes only, 1 seed") == says_so for cell in retention)
