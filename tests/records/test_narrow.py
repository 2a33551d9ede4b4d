"""Printed tables at 80 columns: every number and header is whole, in a real terminal too."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from figures import example_table
from interventions.report_table import render_summary as patch_summary
from probes.report_table import render_summary as probe_summary
from records.narrow import fit_width
from tuning.compare.report_table import render_table

ROOT = Path(__file__).parents[2]
TABLES = {
    "probe": (probe_summary, "score_by_layer_smol"),
    "patch": (patch_summary, "token_map_smol"),
    "skip": (patch_summary, "skip_smol"),
    "compare": (render_table, "retention_smol"),
}


def printed(table: Table, width: int) -> str:
    """What a console of this width shows."""
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        for part in fit_width(table, width):
            console.print(part)
    return capture.get()


@pytest.mark.parametrize("name", TABLES)
def test_every_number_and_header_is_whole_at_80_columns(name: str) -> None:
    render, example = TABLES[name]
    table = render(example_table(example))
    narrow, wide = printed(table, 80), printed(table, 400)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    numbers = [sorted(re.findall(r"\d+\.\d+", text.partition("peak:")[0])) for text in (narrow, wide)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) > 10
    for column in table.columns:
        assert str(column.header).split()[0] in narrow


def test_a_table_that_fits_or_cannot_be_split_is_left_alone() -> None:
    small = Table("a", "b")
    assert fit_width(small, 80) == [small]
    text = Table("a")
    text.add_row("x" * 200)
    assert fit_width(text, 80) == [text]


def test_sections_and_rows_stay_in_every_part() -> None:
    table = Table("name", title="title", caption="caption")
    for number in range(6):
        table.add_column(f"number {number}", justify="right", no_wrap=True)
    table.add_row("first", *["0.1234567"] * 6, end_section=True)
    table.add_row("second", *["7.6543210"] * 6)
    *parts, caption = fit_width(table, 50)
    assert len(parts) > 1
    assert [part.title for part in parts] == ["title", *[None] * (len(parts) - 1)]
    assert [list(column.cells) for column in caption.columns] == [["caption"]]
    text = printed(table, 50)
    assert text.count("0.1234567") == text.count("7.6543210") == 6
    assert text.count("first") == text.count("second") == len(parts)
    assert all(part.rows[0].end_section for part in parts)


def test_show_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    from interventions.config import RUN
    from records.manifest import new_manifest, write_manifest
    from records.tables import write_results

    results: pd.DataFrame = example_table("token_map_smol")
    write_manifest(tmp_path, new_manifest(RUN, {}))
    write_results(tmp_path, results)
    main, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-m", "interventions.cli", "show", str(tmp_path)]
    process = subprocess.Popen(command, stdout=other, stderr=other, stdin=other, env=environment, cwd=tmp_path)
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the end, on Linux
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r", "")
    assert "…" not in text
    table = text.partition("table:")[0]
    assert max(len(line) for line in table.splitlines()) <= 80
    numbers = re.findall(r"\d+\.\d+", printed(patch_summary(results), 400))
    assert set(numbers) <= set(re.findall(r"\d+\.\d+", table))
