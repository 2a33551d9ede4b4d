"""Comparisons with odd tables: figures, report and table end in a result or in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures.__main__ import main as draw
from tests.figures.tables import compare_table
from tuning.cli import main as tune

ODD: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[int, int, int]]] = {
    # name -> change of the table, and the exit status of figures, report and show
    "full scores 0": (
        lambda t: t.assign(score=0.0, score_lower=0.0, score_upper=0.1, retention=np.nan, lower=np.nan, upper=np.nan),
        (0, 0, 0),
    ),
    "without cost": (lambda t: t.assign(flops_ratio=np.nan, step_time_ratio=np.nan), (0, 0, 0)),
    "before the column interval": (lambda t: t.drop(columns=["interval", "seeds"]), (0, 0, 0)),
    "only the start": (lambda t: t[t["plan"] == "start"], (0, 0, 0)),
    "one family": (lambda t: t[t["family"] == "what"], (2, 0, 2)),
    "no rows": (lambda t: t.iloc[:0], (2, 2, 2)),
    "no scores": (lambda t: t.drop(columns="score"), (2, 2, 2)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_comparison(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, wanted = ODD[name]
    change(compare_table()).to_csv(tmp_path / "compare.csv", index=False)
    manifest = {"kind": "laccolith layerwise-finetune compare", "format": 1, "settings": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    commands = (
        lambda: draw([str(tmp_path)]),
        lambda: tune(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]),
        lambda: tune(["show", str(tmp_path)]),
    )
    for command, status in zip(commands, wanted, strict=True):
        try:
            command()
            code = 0
        except SystemExit as end:
            code = int(str(end.code or 0))
        error = capsys.readouterr().err
        assert code == status, error
        assert "Traceback" not in error
        if status:
            assert error.count("\n") == 1
            assert len(error) < 400
