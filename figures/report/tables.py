"""Saved tables as JSON for the page: values by row, with constant columns given once."""

import math
from typing import Any

import pandas as pd

Json = dict[str, Any]
MOST_ROWS = 5000  # largest number of rows of a table
_EXACT = 2**53  # below it a float holds every integer exactly
_DIGITS = 6  # significant digits of a number in the page, which shows three decimals


def plain_value(value: Any) -> Any:
    """A value that JSON can hold: a number, text, bool or None; integers exactly, other numbers to six digits."""
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
    """A sortable table of at most ``most_rows`` rows; ``source``, the table's file, is named if rows are left out.

    The section has ``columns`` as name and kind (``int``, ``float`` or ``text``), ``rows``, ``same`` (columns with one
    value), and ``note`` if rows are left out.
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
