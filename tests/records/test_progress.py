"""Progress in a notebook: what the bar says, that it is one output, and that other places stay silent."""

import html
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from records.progress import NotebookProgress, in_notebook, shown_progress, silent
from records.terminal import progress_bar

ROOT = Path(__file__).parents[2]


class Display:
    """Stands in for IPython's: keeps what was shown, and what it was changed to."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.n_outputs = 0

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: bool) -> "Display":
        self.n_outputs += 1
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], *, raw: bool) -> None:
        self.shown.append(bundle)


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Display:
    made = Display()
    monkeypatch.setattr("IPython.display.display", made.display)
    return made


def ticks(*seconds: float) -> Iterator[float]:
    yield from map(float, seconds)


def test_the_bar_counts_each_stage_and_says_how_long_it_takes(display: Display) -> None:
    clock = ticks(0, 10, 14, 20, 220)
    progress = NotebookProgress(lambda: next(clock))
    progress("capturing", 2, 10)
    assert str(progress) == "capturing: 2/10, 10 s"
    progress("capturing", 4, 10)  # 4 in 4 seconds: the loading of the model before the first 2 does not count
    assert str(progress) == "capturing: 6/10, 14 s, about 4 s left"
    progress("capturing", 4, 10)
    progress("fitting", 1, 1)
    assert str(progress) == "capturing: 10/10, 20 s\nfitting: 1/1, 3 min"
    assert display.n_outputs == 1
    assert [bundle["text/plain"] for bundle in display.shown][-1] == str(progress)
    assert '<progress value="10" max="10"></progress>' in display.shown[-1]["text/html"]


def test_a_stage_with_markup_in_its_name_is_shown_as_text(display: Display) -> None:
    NotebookProgress()('<b>"probes"</b>', 1, 1)
    shown = display.shown[0]["text/html"]
    assert "<b>" not in shown
    assert '<b>"probes"</b>' in html.unescape(shown)


def test_quick_reports_are_not_all_shown_but_the_last_is(display: Display) -> None:
    clock = ticks(*(number / 1000 for number in range(101)))
    progress = NotebookProgress(lambda: next(clock))
    for _ in range(100):
        progress("capturing", 1, 100)
    assert len(display.shown) == 2
    assert display.shown[-1]["text/plain"].startswith("capturing: 100/100")


def test_outside_a_notebook_nothing_is_shown() -> None:
    assert not in_notebook()
    assert shown_progress() is silent


def test_in_a_kernel_both_ways_show_one_output_that_ends_full() -> None:
    # rich and typer take a second; torch is not needed
    sources = (
        "from records.progress import shown_progress\ntell = shown_progress()\ntell('a', 1, 2)\ntell('a', 1, 2)",
        "from records.terminal import progress_bar\nwith progress_bar() as tell:\n    tell('b', 1, 1)",
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell, full in zip(notebook.cells, ("2 / 2", "1 / 1"), strict=True):
        assert [output.output_type for output in cell.outputs] == ["display_data"]
        assert full in cell.outputs[0].data["text/html"]


def test_the_command_s_bar_is_the_notebook_s_where_there_is_one(
    display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("records.terminal.in_notebook", lambda: True)
    with progress_bar() as on_progress:
        on_progress("working", 1, 2)
    with progress_bar(is_main=False) as on_progress:
        on_progress("helping", 1, 2)
    assert [bundle["text/plain"] for bundle in display.shown] == ["working: 1/2, 0 s"]
