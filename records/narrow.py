"""Tables that a terminal shows: ``fit_width`` splits a wide one, ``printable_table`` escapes control characters."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from tasks.errors import printable


def fit_width(table: Table, width: int) -> list[Table]:
    """The table, or several that are at most ``width`` columns wide and hold all of its columns between them.

    The leading columns that are aligned to the left name the rows; each part repeats them. A part has at least one
    other column, even if it is too wide. The caption is a part of its own.

    Example:
        >>> wide = Table(Column("name"), *(Column(f"number {i}", justify="right", no_wrap=True) for i in range(4)))
        >>> wide.add_row("row", *(["0.123456"] * 4))
        >>> [[column.header for column in part.columns] for part in fit_width(wide, 40)]
        [['name', 'number 0', 'number 1'], ['name', 'number 2', 'number 3']]
    """
    if _width(table) <= width:
        return [table]
    first = next((i for i, column in enumerate(table.columns) if column.justify != "left"), len(table.columns))
    if first in (0, len(table.columns)):
        return [table]
    names, rest = table.columns[:first], table.columns[first:]
    chunks: list[list[Column]] = [[]]
    for column in rest:
        if chunks[-1] and _width(_part(table, [*names, *chunks[-1], column])) > width:
            chunks.append([])
        chunks[-1].append(column)
    parts = [_part(table, [*names, *chunk]) for chunk in chunks]
    for number, part in enumerate(parts):
        part.title = table.title if number == 0 else None
    if table.caption:  # as wide as the terminal, not as the last part
        caption = Table.grid(Column(style="table.caption"))
        caption.add_row(table.caption)
        parts.append(caption)
    return parts


def printable_table(table: Table) -> Table:
    r"""The table, with control characters in its texts escaped; rich passes escape sequences on.

    Example:
        >>> unsafe = Table("part")
        >>> unsafe.add_row("red\x1b[31m")
        >>> unsafe.add_row(Text("blue\x1b[34m"))
        >>> [str(cell) for cell in printable_table(unsafe).columns[0].cells]
        ['red\\x1b[31m', 'blue\\x1b[34m']
    """
    for column in table.columns:
        column.header = _shown(column.header)
        column._cells = [_shown(cell) for cell in column._cells]
    table.title = _shown(table.title)
    table.caption = _shown(table.caption)
    return table


def _shown(text: Any) -> Any:
    if isinstance(text, Text):
        text.plain = printable(text.plain, keep="\n")
    return printable(text, keep="\n") if isinstance(text, str) else text


def _part(table: Table, columns: Sequence[Column]) -> Table:
    """The table with some of its columns, without title and caption."""
    part = Table(
        box=table.box, padding=table.padding, title_justify=table.title_justify, caption_justify=table.caption_justify
    )
    part.columns = [replace(column, _index=index) for index, column in enumerate(columns)]
    part.rows = list(table.rows)
    return part


def _width(table: Table) -> int:
    """The width at which no cell is wrapped or cut."""
    console = Console(width=10_000)
    bare = _part(table, table.columns)
    return Measurement.get(console, console.options, bare).maximum
