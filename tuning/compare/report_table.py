"""The table of a finished comparison, for the terminal and notebooks."""

from typing import Any

import numpy as np
import pandas as pd
from rich.table import Column, Table
from rich.text import Text

from tuning.scoring.retention import REFERENCE

# What a score's value, interval and what it is about are called in the table
_SCORE = ("score", "score_lower", "score_upper", "score_interval")
_RETENTION = ("retention", "lower", "upper", "interval")


def render_table(table: pd.DataFrame) -> Table:
    """The comparison's main numbers, one row per plan; the caption says what each interval is about."""
    conditions = list(dict.fromkeys(table.loc[table["family"] == "all", "condition"]))
    shown = conditions[0]  # ``seen`` where scenes are scored
    retention = f"retention ({shown})"
    numbers = ("layers", "trains", "FLOPs", "time", *conditions, retention, "passage", "seeds")
    overall = table[table["family"] == "all"]
    passage = table[table["condition"] == "passage"]
    grid = Table(
        "plan",
        *(Column(header, justify="right", no_wrap=True) for header in numbers),
        caption="\n".join(
            [
                *_about(", ".join(conditions), overall, "score_interval"),
                *_about(retention, overall[overall["condition"] == shown], "interval"),
                *_about("passage", passage, "score_interval"),
            ]
        ),
        caption_justify="left",
    )
    for name in dict.fromkeys(table["plan"]):
        first = table[table["plan"] == name].iloc[0]
        scores = overall[overall["plan"] == name].set_index("condition")
        words = passage[passage["plan"] == name]
        main = scores.loc[shown]
        grid.add_row(
            Text(str(name)), str(first["layers"]), f"{int(first['trainable']):,}", _share(first["flops_ratio"]),
            _share(first["step_time_ratio"]), *(_cell(scores.loc[condition], _SCORE) for condition in conditions),
            _cell(main, _RETENTION), "" if words.empty else _cell(words.iloc[0], _SCORE, digits=4),
            str(int(main["seeds"])) if "seeds" in main else "",
        )  # fmt: skip
    return grid


def _about(columns: str, rows: pd.DataFrame, key: str) -> list[str]:
    """A line that says what the intervals of these columns are about; none for a table from before they were stored."""
    found = [str(about) for about in rows[key].dropna().unique()] if key in rows else []
    return [f"{columns}: {' | '.join(found)}"] if found else []


def _share(value: Any) -> str:
    return "" if pd.isna(value) else f"{float(value):.2f}"


def _cell(row: "pd.Series[Any]", keys: tuple[str, str, str, str], *, digits: int = 3) -> str:
    """A number with its interval; empty if it is undefined, as retention is where full tuning scores 0."""
    number, lower, upper, about = (row.get(key, np.nan) for key in keys)
    if pd.isna(number):
        return ""
    value = f"{float(number):.{digits}f}"
    if pd.isna(lower):  # the reference is 1 by definition; a table of an earlier version does not say why
        return value if pd.isna(about) or about == REFERENCE else f"{value}, no interval"
    of_seeds = " this seed only" if "this seed only" in str(about) else ""
    return f"{value} [{float(lower):.{digits}f}, {float(upper):.{digits}f}]{of_seeds}"
