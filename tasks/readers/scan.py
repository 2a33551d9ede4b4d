"""The pass over a table that checks every row and finds its splits, groups and label columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tasks.errors import UserError
from tasks.example import Target
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.rows import RowReader, is_missing, row_id
from tasks.readers.tables import Table

_CONTINUOUS_FROM = 20  # a column of floats with more distinct values than this is continuous


@dataclass
class _Column:
    """The types and values that a label column has so far."""

    types: set[str] = field(default_factory=set)
    values: set[object] = field(default_factory=set)  # at most one more than it takes to be continuous
    present: int = 0
    hole: int | None = None  # the first row without a value

    def see(self, value: object, number: int) -> None:
        if is_missing(value):
            self.hole = number if self.hole is None else self.hole
            return
        self.present += 1
        kind = type(value).__name__ if isinstance(value, bool | int | float | str) else "other"
        self.types.add(kind)
        if kind != "other" and len(self.values) <= _CONTINUOUS_FROM:
            self.values.add(value)

    @property
    def readable(self) -> bool:
        """Whether all values are of one kind: text, truth values, or numbers."""
        return (
            bool(self.types) and (len(self.types) == 1 or self.types == {"int", "float"}) and "other" not in self.types
        )

    @property
    def kind(self) -> Literal["class", "continuous"]:
        return "continuous" if "float" in self.types and len(self.values) > _CONTINUOUS_FROM else "class"


class Scan:
    """Splits, groups and label columns of a table."""

    def __init__(self, table: Table, folder: PictureFolder) -> None:
        self.table, self.folder = table, folder
        self.kept: list[int] = []
        self.columns: dict[str, _Column] = {}
        self.focused = True
        self._members: list[tuple[str, ...]] = []  # for each row, the nodes that it ties together

    def add(self, names: Sequence[str], group: object, name: str) -> None:
        """Record which pictures and group a row has."""
        nodes = [f"picture {picture}" for picture in names]
        if group is not None:
            nodes.append(f"group {group}")
        self._members.append(tuple(nodes) or (f"row {name}",))

    @property
    def floats(self) -> frozenset[str]:
        """Columns of numbers, some of which are written as integers."""
        return frozenset(name for name, column in self.columns.items() if column.types == {"int", "float"})

    def groups(self) -> list[str]:
        """One group for each row: rows that share a picture or a given group, directly or through others, are one."""
        self.folder.unite()
        parent: dict[str, str] = {}

        def root(node: str) -> str:
            parent.setdefault(node, node)
            while parent[node] != node:
                parent[node] = node = parent[parent[node]]
            return node

        def same(node: str) -> str:
            kind, _, rest = node.partition(" ")
            return f"picture {self.folder.key(rest)}" if kind == "picture" else node

        tied = [[same(node) for node in nodes] for nodes in self._members]
        for first, *rest in tied:
            for node in rest:
                parent[root(node)] = root(first)
        return [root(first).partition(" ")[2] for first, *_ in tied]

    def targets(self, wanted: Sequence[str] | None) -> tuple[Target, ...]:
        """The targets named in ``wanted``, with their overrides; None for every readable label."""
        scope: Literal["image", "object"] = "object" if self.focused else "image"
        readable = {name: column for name, column in self.columns.items() if column.readable}
        if wanted is None:
            return tuple(Target(name, scope, column.kind) for name, column in readable.items() if name != "answer")
        return tuple(self._target(text, readable, scope) for text in wanted)

    def _target(self, text: str, readable: Mapping[str, _Column], scope: Literal["image", "object"]) -> Target:
        name, _, override = text.rpartition(":") if text not in self.columns and ":" in text else (text, "", "")
        if name not in readable:
            known = ", ".join(readable) or "no labels"
            why = "" if name not in self.columns else " (its values are missing, nested, or of mixed types)"
            raise UserError(f"target must be a label column, got {name!r}{why}. The file has: {known}.")
        column = readable[name]
        if column.hole is not None:
            raise UserError(
                f"target {name!r} must have a label in every row, got none in {self.table.where(column.hole)}. "
                "Drop the rows without one."
            )
        if override in ("image", "object"):
            return Target(name, "object" if override == "object" else "image", column.kind)
        if override not in ("", "class", "continuous"):
            raise UserError(
                f"target must end in :class, :continuous, :image or :object, got {text!r}. Use one of the four."
            )
        if override == "continuous" and not column.types <= {"int", "float"}:
            raise UserError(
                f"target {name!r} must hold numbers to be continuous, got text or truth values. Use :class."
            )
        kind = column.kind if not override else "continuous" if override == "continuous" else "class"
        return Target(name, scope, kind)


def scan_table(table: Table, reader: RowReader, split: str | None, targets: Sequence[str] | None) -> Scan:
    """Check every row, and find splits, groups and label columns; labels are those of the rows that are kept."""
    scan = Scan(table, reader.folder)
    ids: set[str] = set()
    splits: set[str] = set()
    for number, row in enumerate(table):
        where = table.where(number)
        name = row_id(row, number)
        if name in ids:
            raise UserError(f"id must be unique, got {name!r} again in {where}. Rename one, or drop the column.")
        ids.add(name)
        names = reader.pictures(row, where)
        reader.text(row, "question", reader.question_column, where)
        reader.text(row, "answer", reader.answer_column, where)
        reader.boxes(row, names, where)
        scan.add(names, row.get("group"), name)
        if row.get("split") is not None:
            splits.add(str(row["split"]))
        if split is not None and str(row.get("split")) != split:
            continue
        seen_before = len(scan.kept)
        scan.kept.append(number)
        scan.focused &= row.get("focus") is not None
        labels = {**reader.labels(row), "answer": row[reader.answer_column]}
        for key in [key for key in labels if key not in scan.columns]:
            scan.columns[key] = _Column(hole=scan.kept[0] if seen_before else None)
        for key, column in scan.columns.items():
            value = labels.get(key)
            if isinstance(value, float) and math.isinf(value):
                raise UserError(f"label must be finite, got {key}: {value} in {where}. Correct or drop the row.")
            column.see(value, number)
    if split is not None and not scan.kept:
        known = ", ".join(sorted(splits)) or "none (the file has no split column)"
        raise UserError(f"split must be one of {known}, got {split!r}. Name one that the file has.")
    return scan
