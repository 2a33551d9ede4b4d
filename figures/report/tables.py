"""Saved tables as the page holds them: plain values by row, columns that say the same everywhere told once."""

import math
from typing import Any

import pandas as pd

Json = dict[str, Any]
MOST_ROWS = 5000  # of one table: beyond it the page would grow without being read
_EXACT = 2**53  # below it a float holds each whole number, and the page shows all of its digits
_DIGITS = 6  # significant digits that the page keeps of a number; it shows three decimals


def plain_value(value: Any) -> Any:
    """A number, text, truth value or None, as JSON can hold it; whole numbers exactly, others to six digits."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if hasattr(value, "item"):
        return plain_value(value.item())
    if isinstance(value, float):
        if value.is_integer() and abs(value) < _EXACT:
            return int(value)
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int | str) else str(value)


def table_section(table: pd.DataFrame, *, title: str, source: str, most_rows: int = MOST_ROWS) -> Json:
    """A sortable table.

    Args:
        table: What was saved.
        title: Of the section.
        source: The file it comes from; named where rows are left out.
        most_rows: How many rows the page may hold.

    Returns:
        ``columns`` as name and kind (``int``, ``float`` or ``text``), ``rows``, ``same`` (columns in which all rows
        agree), and ``note`` where rows are left out.
    """
    same, names = [], []
    for name in table.columns:
        known = table[name].dropna()
        if known.empty:
            continue
        if len(table) > 1 and len(known) == len(table) and (known == known.iloc[0]).all():
            same.append([str(name), plain_value(known.iloc[0])])
        else:
            names.append(str(name))
    shown = table[names].head(most_rows)
    left_out = len(table) - len(shown)
    return {
        "type": "table",
        "title": title,
        "same": same,
        "columns": [{"name": name, "kind": _kind(table[name])} for name in names],
        "rows": [[plain_value(value) for value in row] for row in shown.itertuples(index=False, name=None)],
        "note": f"{left_out:,} of {len(table):,} rows are left out here; {source} holds them all." if left_out else "",
    }


def _kind(column: "pd.Series[Any]") -> str:
    if pd.api.types.is_bool_dtype(column):
        return "text"
    if pd.api.types.is_integer_dtype(column):
        return "int"
    if not pd.api.types.is_float_dtype(column):
        return "text"
    known = column.dropna()
    return (
        "int"
        if (known == known.round()).all() and (column.name in ("layer", "head") or known.abs().max() > 1)
        else "float"
    )
