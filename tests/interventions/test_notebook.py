"""What a notebook shows of a patch sweep: its summary, its figure, and how far it is."""

from html import unescape
from pathlib import Path

import pytest

from interventions.config import InterventionOptions, PairOptions, PatchConfig
from interventions.report_table import render_summary, summarise
from interventions.sweep import run_patch_sweep
from records.options import ModelOptions
from records.run import FinishedRun
from tests.figures.tables import patch_table

MARKUP = '<i>"model"</i>'


def test_a_finished_sweep_shows_its_summary_with_markup_as_text() -> None:
    made = patch_table()
    results = made.assign(
        model=MARKUP, recovered_lower=made["recovered"] - 0.02, recovered_upper=made["recovered"] + 0.03
    )
    shown = FinishedRun(Path("runs/x"), results, render_summary(results))._repr_html_()
    assert "<i>" not in shown
    assert MARKUP in unescape(shown)
    best = summarise(results).query("tokens == 'last' and metric == 'logit_difference'").iloc[0]
    assert best["effect"] > 0.5
    for cell in ("last", "logit diff.", str(int(best["layer"])), f"{best['effect']:.2f}", f"{best['value']:.2f}"):
        assert f">{cell}</td>" in shown
    assert "<code>runs/x</code>" in shown


def test_the_main_figure_is_inside_the_page(tmp_path: Path) -> None:
    made = patch_table().assign(recovered_lower=0.0, recovered_upper=1.0)
    (tmp_path / "main.png").write_bytes(b"main")
    (tmp_path / "other.png").write_bytes(b"other")
    figures = (tmp_path / "main.png", tmp_path / "other.png")
    shown = FinishedRun(tmp_path, made, render_summary(made), figures)._repr_html_()
    assert shown.count("<img") == 1
    assert "base64,bWFpbg==" in shown  # main


def test_a_sweep_shows_its_progress_where_it_is_a_notebook(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("interventions.sweep.ProgressBars", lambda: lambda *report: told.append(report))
    monkeypatch.setattr("figures.drawn_figures", lambda folder, **_: ())  # drawing takes longer than the run
    settings = PatchConfig(
        InterventionOptions(layers="0", tokens=("last",)),
        model=ModelOptions(name=str(checkpoint)),
        pairs=PairOptions(limit=4),
        batch_size=2,
        out=tmp_path / "run",
    )
    assert isinstance(run_patch_sweep(settings), FinishedRun)
    assert {(stage, total) for stage, _, total in told} == {("patch, cells", 4)}
    assert len(told) > 1
    assert sum(done for _, done, _ in told) == 4
