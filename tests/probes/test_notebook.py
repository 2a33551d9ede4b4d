"""What a notebook shows of a probe sweep: its summary, its figure, and how far it is."""

import io
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from probes.config import DataOptions, ModelOptions, ProbeOptions, SiteOptions, SweepConfig
from probes.report_table import render_summary, summarise
from probes.sweep import run_sweep
from records.run import FinishedRun
from tests.figures.tables import probe_table

MARKUP = '<i>"kind"</i> [/bold]'


@pytest.fixture
def results() -> pd.DataFrame:
    made = probe_table(targets=(MARKUP, "count"))
    return made.assign(selectivity=made["score"] - made["control"], q=0.01)


def test_a_finished_sweep_shows_its_summary_with_markup_as_text(results: pd.DataFrame) -> None:
    finished = FinishedRun(
        Path("runs/x"), results, render_summary(results), (Path("gone.png"),), ("3 examples left out",)
    )
    shown = finished._repr_html_()
    assert "<i>" not in shown
    assert MARKUP in unescape(shown)
    best = summarise(results).query("part == 'language_model' and name == 'resid_post'").iloc[0]
    assert best["score"] > 0.6
    for cell in ("count", "language model", str(best["peak"]), f"{best['score']:.2f}", f"{best['transfer']:.2f}"):
        assert f">{cell}</td>" in shown
    assert "3 examples left out" in shown
    assert "<code>runs/x</code>" in shown


def test_a_target_that_looks_like_the_terminal_s_markup_is_printed_as_it_is(results: pd.DataFrame) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render_summary(results))
    assert MARKUP in console.export_text()


def test_a_sweep_shows_its_progress_where_it_is_a_notebook(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("probes.sweep.ProgressBars", lambda: lambda *report: told.append(report))
    finished = run_sweep(
        SweepConfig(
            model=ModelOptions(name=str(checkpoint)),
            data=DataOptions(limit=30, transfer_limit=10),
            sites=SiteOptions(specs=("projector:out",)),
            probing=ProbeOptions(targets=("colour",), folds=2, controls=False, maps=0),
            out=tmp_path / "run",
        )
    )
    assert isinstance(finished, FinishedRun)
    assert {stage for stage, _, _ in told} == {"capturing", "fitting probes"}
    for stage in ("capturing", "fitting probes"):
        total = next(report[2] for report in told if report[0] == stage)
        assert sum(done for name, done, _ in told if name == stage) == total > 0
    assert "data:image/png;base64," in finished._repr_html_()
