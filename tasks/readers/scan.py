"""The first pass over a table: it checks every row and finds the splits, groups and label columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tasks.errors import UserError, printable
from tasks.example import Target
from tasks.readers.rows import RowReader, is_label, is_missing, row_id
from tasks.readers.tables import Table

_CONTINUOUS_ABOVE = 20  # a column of floats with more distinct values is continuous
_LARGEST = 1e100  # of continuous labels: their squares, and the sums of these, must be finite
_OVERRIDES = ("", "class", "continuous", "image", "object")


@dataclass
class _Column:
    """The types and values of a label column up to now."""

    types: set[str] = field(default_factory=set)
    values: set[object] = field(default_factory=set)  # at most one more than the limit of a class
    empty_row: int | None = None  # the first row without a value
    lowest: float = math.inf
    highest: float = -math.inf

    def add(self, value: object, number: int) -> None:
        if is_missing(value):
            self.empty_row = number if self.empty_row is None else self.empty_row
            return
        kind = type(value).__name__ if is_label(value) else "other"
        self.types.add(kind)
        if kind != "other" and len(self.values) <= _CONTINUOUS_ABOVE:
            self.values.add(value)
        if isinstance(value, int | float) and kind != "other":
            self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)

    @property
    def readable(self) -> bool:
        """Whether all values have one kind: text, truth values, or numbers."""
        return self.types == {"int", "float"} or (len(self.types) == 1 and "other" not in self.types)

    @property
    def kind(self) -> Literal["class", "continuous"]:
        return "continuous" if "float" in self.types and len(self.values) > _CONTINUOUS_ABOVE else "class"


class Scan:
    """The kept rows, groups and label columns of a table.

    Args:
        table: The table.
        reader: Checks its rows.
        split: Keep the rows of this split; None keeps all.

    Raises:
        UserError: If a row is invalid, or no row has the split.
    """

    def __init__(self, table: Table, reader: RowReader, split: str | None) -> None:
        self.table, self.reader = table, reader
        self.kept: list[int] = []
        self.n_captioned = 0  # kept rows with captions
        self._columns: dict[str, _Column] = {}  # of the kept rows
        self._scope: Literal["image", "object"] = "object"
        self._members: list[tuple[list[str], object, str]] = []  # for each row: pictures, group, id
        ids: set[str] = set()
        splits: set[str] = set()
        for number, row in enumerate(table):
            where = table.where(number)
            name = row_id(row, number)
            if name in ids:
                raise UserError(f"id must be unique, got {name!r} again in {where}. Rename one, or drop the column.")
            ids.add(name)
            example = reader.example(row, where, number, "", frozenset())  # checks the values
            self._members.append(([picture.key for picture in example.pictures], row.get("group"), name))
            if row.get("split") is not None:
                splits.add(example.split)
            if split is not None and str(row.get("split")) != split:
                continue
            self.kept.append(number)
            self.n_captioned += bool(example.captions)
            if example.focus is None:
                self._scope = "image"
            self._add_labels({**reader.labels(row), "answer": row.get(reader.answer_column)}, number)
        if split is not None and not self.kept:
            known = ", ".join(sorted(splits)) or "none (the file has no split column)"
            raise UserError(f"split must be one of {known}, got {split!r}. Name one that the file has.")

    def _add_labels(self, labels: dict[str, object], number: int) -> None:
        first = None if self.kept[0] == number else self.kept[0]
        for key in labels:
            self._columns.setdefault(key, _Column(empty_row=first))
        for key, column in self._columns.items():
            value = labels.get(key)
            if isinstance(value, float) and math.isinf(value):
                raise UserError(
                    f"label must be finite, got {key}: {value} in {self.table.where(number)}. Correct or drop the row."
                )
            column.add(value, number)

    @property
    def floats(self) -> frozenset[str]:
        """The columns of floats in which some values are written as integers."""
        return frozenset(name for name, column in self._columns.items() if column.types == {"int", "float"})

    def groups(self) -> list[str]:
        """The group of each row; rows that share a picture or a ``group``, also through other rows, are one group."""
        folder = self.reader.folder
        folder.find_equal_files()
        parent: dict[str, str] = {}

        def root(node: str) -> str:
            parent.setdefault(node, node)
            while parent[node] != node:
                parent[node] = node = parent[parent[node]]
            return node

        tied = []
        for names, group, row in self._members:
            nodes = [f"picture {folder.key(name)}" for name in names]
            nodes += [] if group is None else [f"group {group}"]
            tied.append(nodes or [f"row {row}"])
        for first, *rest in tied:
            for node in rest:
                parent[root(node)] = root(first)
        return [root(first).partition(" ")[2] for first, *_ in tied]

    def targets(self, wanted: Sequence[str] | None) -> tuple[Target, ...]:
        """The targets that ``wanted`` names, with their overrides; None for every readable label."""
        readable = {
            name: Target(name, self._scope, column.kind) for name, column in self._columns.items() if column.readable
        }
        if wanted is None:
            return tuple(target for name, target in readable.items() if name != "answer")
        return tuple(self._target(text, readable) for text in wanted)

    def _target(self, text: str, readable: dict[str, Target]) -> Target:
        name, _, override = text.rpartition(":") if text not in self._columns and ":" in text else (text, "", "")
        if name in readable and printable(name) != name:  # it is drawn, printed and written
            raise UserError(f"target must be a name without control characters, got {name!r}. Rename the column.")
        if name not in readable:
            known = ", ".join(readable) or "no labels"
            why = (
                ""
                if name not in self._columns
                else " (its values are missing, nested, of mixed types, or beyond 64 bits)"
            )
            raise UserError(f"target must be a label column, got {name!r}{why}. The file has: {known}.")
        column = self._columns[name]
        if column.empty_row is not None:
            raise UserError(
                f"target {name!r} must have a label in every row, got none in {self.table.where(column.empty_row)}. "
                "Drop the rows without one."
            )
        if override not in _OVERRIDES:
            raise UserError(
                f"target must end in :class, :continuous, :image or :object, got {text!r}. Use one of the four."
            )
        if override == "continuous" and not column.types <= {"int", "float"}:
            raise UserError(
                f"target {name!r} must hold numbers to be continuous, got text or truth values. Use :class."
            )
        if override == "continuous" or (not override and column.kind == "continuous"):
            _check_range(text, column)
        changed: dict[str, Any] = {"scope" if override in ("image", "object") else "kind": override} if override else {}
        return replace(readable[name], **changed)


def _check_range(target: str, column: _Column) -> None:
    """Check that squares of a continuous label neither overflow nor vanish."""
    if max(-column.lowest, column.highest) > _LARGEST:
        raise UserError(
            f"target {target!r} must hold numbers between -1e100 and 1e100 to be continuous, got {column.lowest:g} to "
            f"{column.highest:g}. Rescale them, or use :class."
        )
    if 0 < column.highest - column.lowest < 1 / _LARGEST:
        raise UserError(
            f"target {target!r} must hold numbers that differ by 1e-100 or more to be continuous, got a range of "
            f"{column.highest - column.lowest:g}. Rescale them, or use :class."
        )
