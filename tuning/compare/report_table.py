"""The table of a finished comparison, for the terminal and notebooks."""

from typing import Any

import numpy as np
import pandas as pd
from rich.table import Column, Table
from rich.text import Text


def render_table(table: pd.DataFrame) -> Table:
    """The comparison's main numbers, one row per plan."""
    conditions = list(dict.fromkeys(table.loc[table["family"] == "all", "condition"]))
    shown = conditions[0]  # ``seen`` where scenes are scored
    numbers = ("layers", "trains", "FLOPs", "time", *conditions, f"retention ({shown})", "passage", "seeds")
    grid = Table("plan", *(Column(header, justify="right", no_wrap=True) for header in numbers))
    for name in dict.fromkeys(table["plan"]):
        rows = table[table["plan"] == name]
        first = rows.iloc[0]
        overall = rows[rows["family"] == "all"].set_index("condition")
        main = overall.loc[shown]
        passage = rows[rows["condition"] == "passage"]

        def seeds_of(main: "pd.Series[Any]") -> str:
            return str(int(main["seeds"])) if "seeds" in main else ""

        def share(value: Any) -> str:
            return "" if pd.isna(value) else f"{float(value):.2f}"

        grid.add_row(
            Text(str(name)), str(first["layers"]), f"{int(first['trainable']):,}", share(first["flops_ratio"]),
            share(first["step_time_ratio"]), *(f"{float(overall.loc[c, 'score']):.3f}" for c in conditions),
            _interval(float(main["retention"]), float(main["lower"]), float(main["upper"]), str(main.get("interval"))),
            "" if passage.empty else f"{float(passage['score'].iloc[0]):.4f}", seeds_of(main),
        )  # fmt: skip
    return grid


def _interval(value: float, lower: float, upper: float, about: str) -> str:
    """Empty if retention is undefined: full tuning scores 0, or shares no seed with the plan."""
    if np.isnan(value):
        return ""
    if np.isnan(lower):  # of the reference itself
        return f"{value:.3f}"
    return f"{value:.3f} [{lower:.3f}, {upper:.3f}]{' scenes only, 1 seed' if 'this seed only' in about else ''}"
