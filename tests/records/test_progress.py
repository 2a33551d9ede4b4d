"""Progress bars: one for each stage in a terminal or notebook, nothing elsewhere."""

import io
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from records.progress import ProgressBars, in_notebook, silent

ROOT = Path(__file__).parents[2]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal instead of stderr. Not a fixture: pytest sets stderr again after the set-up of a test."""
    made = Screen()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.delenv("RANK", raising=False)
    return made


def test_each_stage_has_a_bar_that_ends_full(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    bars = ProgressBars()
    for stage, steps in (("capturing", (4, 4, 2)), ("fitting", (10,))):
        for done in steps:
            bars(stage, done, 10)
    text = shown.getvalue()
    assert "capturing: 100%" in text
    assert "fitting: 100%" in text
    assert text.count("10/10") >= 2
    assert "it/s" in text


def test_other_ranks_and_files_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    ProgressBars(is_main=False)("capturing", 1, 2)
    monkeypatch.setenv("RANK", "1")
    ProgressBars()("capturing", 1, 2)
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    ProgressBars()("capturing", 1, 2)
    silent("capturing", 1, 2)
    assert shown.getvalue() == ""
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_close_ends_the_line_of_an_unfinished_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    bars = ProgressBars()
    bars("capturing", 1, 2)
    bars.close()
    assert shown.getvalue().endswith("\n")


def test_bars_are_shown_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr("records.progress.in_notebook", lambda: True)
    assert ProgressBars().shown
    assert not ProgressBars(is_main=False).shown


def test_a_kernel_shows_one_bar_for_each_stage() -> None:
    source = "from records.progress import ProgressBars\nbars = ProgressBars()\nbars('a', 1, 2)\nbars('a', 1, 2)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "display_data"
    assert "application/vnd.jupyter.widget-view+json" in output.data
