"""Your own data: a JSONL or Parquet file with a folder of pictures becomes a ``Dataset`` (``read_table``).

One row is one example. Columns: ``image`` (a path relative to the folder) or ``images`` (a list of them),
``question``, ``answer``, and optionally ``id``, ``group``, ``split``, ``family``, ``boxes`` (name -> [left, top, right,
bottom] in pixels) and ``focus`` (the name of one box). Every other column is a label that probes may read. The file is
checked once, row by row, and rows are read again when they are asked for: no row and no picture is held in memory.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.dataset import Dataset, LazyExamples
from tasks.errors import UserError
from tasks.example import Box, Example, Label, Target
from tasks.readers.picture_folder import PictureFolder
from tasks.readers.tables import Row, Table, open_table
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.scene import SIZE

_RESERVED = ("id", "image", "images", "question", "answer", "group", "split", "family", "boxes", "focus")
_CONTINUOUS_FROM = 20  # a column of floats with more distinct values than this is measured, not named
_DEFAULT_SCENES = 400


class BadPicture(NamedTuple):
    """An example whose picture cannot be used, and why."""

    id: str
    reason: str


def load_dataset(
    spec: str,
    images: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    size: int = SIZE,
    targets: Sequence[str] | None = None,
) -> Dataset:
    """The data set that ``spec`` names: ``"scenes"`` for the embedded one, or the path of a JSONL or Parquet file.

    Args:
        spec: ``"scenes"`` or a path.
        images: The folder of the pictures; None for the folder that the file lies in.
        split: Keep one split; None for all rows (of scenes: ``"test"``).
        limit: Keep the first so many examples.
        seed: Of the scenes.
        size: Width and height of the scenes in pixels.
        targets: As for ``read_table``.

    Raises:
        ValueError: If the data cannot be used.
    """
    if spec == "scenes":
        n = _DEFAULT_SCENES if limit is None else limit
        return scenes_dataset(split=split or "test", n=n, seed=seed, size=size)
    return read_table(spec, images, split=split, limit=limit, targets=targets)


def read_table(
    path: str | Path,
    images: str | Path | None = None,
    *,
    targets: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    image_column: str | None = None,
    question_column: str = "question",
    answer_column: str = "answer",
) -> Dataset:
    """The examples of a JSONL (``.jsonl``) or Parquet (``.parquet``) file, each made when it is asked for.

    Rows that share a picture, a ``group``, or two files with equal bytes are one group: otherwise a probe could be
    scored on a picture it was fitted on. A label of floats with more than 20 distinct values is continuous, any other
    is a class; it belongs to the focused box if every row has a ``focus``, else to the picture. A missing label (null
    or NaN) is left out of ``Example.labels``. The digest covers the bytes of the file, and of each picture its path,
    size and time of change.

    Args:
        path: The file.
        images: The folder that picture paths are relative to and may not leave; None for the file's own folder.
        targets: The labels to offer, each required in every row; ``"age:continuous"``, ``"age:class"``,
            ``"colour:object"`` and ``"colour:image"`` override what is inferred. None for every label column.
        split: Keep the rows whose ``split`` is this one.
        limit: Keep the first so many of them.
        image_column: The column of picture paths; None for ``image`` or ``images``, whichever a row has.
        question_column: The column of questions.
        answer_column: The column of answers.

    Raises:
        UserError: If the file, a row, a path, a box, a label, a target or a split cannot be used; messages about rows
            count lines (JSONL) or rows (Parquet) from 1.
    """
    path = Path(path)
    folder = Path(images) if images is not None else path.parent
    if not folder.is_dir():
        raise UserError(f"images must be a folder, got {str(folder)!r}. Name the folder that picture paths start from.")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be >= 1, got {limit}. Leave it out for all rows.")
    table = open_table(path)
    layout = _Layout(image_column, question_column, answer_column, PictureFolder(folder))
    scan = _scan(table, layout, split, targets)
    kept = scan.kept[:limit]
    if not kept:
        raise UserError(f"data must have at least one row, got none in {str(path)!r}. Add examples.")
    groups, floats = scan.groups(), scan.floats

    def make(index: int) -> Example:
        number = kept[index]
        return layout.example(table[number], table.where(number), number, groups[number], floats)

    settings = [split, limit, image_column, question_column, answer_column, sorted(targets or [])]
    return Dataset(
        name=path.name,
        examples=LazyExamples(len(kept), make),
        targets=scan.targets(targets),
        digest=_digest(path, layout.folder, settings),
    )


def check_pictures(dataset: Dataset) -> list[BadPicture]:
    """The examples whose pictures do not open, with the reason; each distinct picture is decoded once, none is kept."""
    reasons: dict[str, str | None] = {}
    bad = []
    for example in dataset.examples:
        for picture in example.pictures:
            if picture.key not in reasons:
                try:
                    picture.open()
                    reasons[picture.key] = None
                except UserError as error:
                    reasons[picture.key] = str(error)
        reason = next((reason for p in example.pictures if (reason := reasons[p.key]) is not None), None)
        if reason is not None:
            bad.append(BadPicture(example.id, reason))
    return bad


@dataclass(frozen=True)
class _Layout:
    """Which column means what."""

    image_column: str | None
    question_column: str
    answer_column: str
    folder: PictureFolder

    def pictures(self, row: Row, where: str) -> list[str]:
        """The checked names of the row's pictures."""
        columns = (self.image_column,) if self.image_column else ("image", "images")
        given = [row[column] for column in columns if row.get(column) is not None]
        if self.image_column and self.image_column not in row:
            raise _unknown_column("image_column", self.image_column, row, where)
        if len(given) > 1:
            raise UserError(f"row must have image or images, got both in {where}. Keep one of the two columns.")
        names = [] if not given else given[0] if isinstance(given[0], list) else [given[0]]
        return [self.folder.add(name, where) for name in names]

    def text(self, row: Row, role: str, column: str, where: str) -> str:
        """A question or an answer."""
        if column not in row:
            raise _unknown_column(f"{role}_column", column, row, where)
        value = row[column]
        if not isinstance(value, str | int | float):
            raise UserError(f"{role} must be text, got {value!r} in {where}. Write it as a string.")
        return str(value)

    def boxes(self, row: Row, names: Sequence[str], where: str) -> dict[str, Box]:
        """The boxes of a row, inside its first picture."""
        given = row.get("boxes")
        entries = given
        if isinstance(given, list) and all(isinstance(pair, tuple) for pair in given):
            entries = dict(given)  # Parquet's maps arrive as pairs
        if entries is not None and not isinstance(entries, dict):
            raise UserError(
                f"boxes must map names to [left, top, right, bottom], got {given!r} in {where}. Use a mapping."
            )
        boxes = {}
        for name, corners in (entries or {}).items():
            if corners is None:  # a Parquet struct has every name in every row
                continue
            numbers = isinstance(corners, list) and all(isinstance(c, int | float) for c in corners)
            if not numbers or len(corners) != 4 or not all(math.isfinite(c) for c in corners):
                raise UserError(
                    f"box must be [left, top, right, bottom], got {name}: {corners!r} in {where}. Give four numbers."
                )
            box = Box(*map(float, corners))
            if not (box.left < box.right and box.top < box.bottom):
                raise UserError(
                    f"box must have left < right and top < bottom, got {name}: {corners!r} in {where}. Swap corners."
                )
            size = self.folder.size(names[0]) if names else None
            if box.left < 0 or box.top < 0 or (size and (box.right > size[0] or box.bottom > size[1])):
                extent = f"{size[0]} x {size[1]}" if size else "picture"
                raise UserError(
                    f"box must lie inside its picture ({extent}), got {name}: {corners!r} in {where}. Clip it."
                )
            boxes[str(name)] = box
        focus = row.get("focus")
        if focus is not None and focus not in boxes:
            raise UserError(
                f"focus must be one of the boxes ({', '.join(boxes) or 'none'}), got {focus!r} in {where}. Name a box."
            )
        return boxes

    def labels(self, row: Row) -> dict[str, Any]:
        """Every column that has no other role."""
        roles = {*_RESERVED, self.image_column, self.question_column, self.answer_column}
        return {key: value for key, value in row.items() if key not in roles and not key.startswith("__index_level_")}

    def example(self, row: Row, where: str, number: int, group: str, floats: frozenset[str]) -> Example:
        """The example that a row describes."""
        names = self.pictures(row, where)
        labels: dict[str, Label] = {
            key: float(value) if key in floats else value
            for key, value in {**self.labels(row), "answer": row.get(self.answer_column)}.items()
            if isinstance(value, str | int | float) and not _missing(value)
        }
        return Example(
            id=_id(row, number),
            pictures=tuple(self.folder.picture(name) for name in names),
            question=self.text(row, "question", self.question_column, where),
            answer=self.text(row, "answer", self.answer_column, where),
            group=group,
            split=str(row["split"]) if row.get("split") is not None else "all",
            labels=labels,
            boxes=self.boxes(row, names, where),
            focus=row.get("focus"),
            family=str(row.get("family") or ""),
        )


@dataclass
class _Column:
    """What is known of a label column after reading it."""

    types: set[str] = field(default_factory=set)
    values: set[object] = field(default_factory=set)  # at most one more than it takes to be continuous
    present: int = 0
    hole: int | None = None  # the first row without a value

    def see(self, value: object, number: int) -> None:
        if _missing(value):
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


class _Scan:
    """What one pass over the rows finds."""

    def __init__(self, table: Table, folder: PictureFolder) -> None:
        self.table, self.folder = table, folder
        self.kept: list[int] = []
        self.columns: dict[str, _Column] = {}
        self.focused = True
        self._members: list[tuple[str, ...]] = []  # for each row, the nodes that it ties together

    def add(self, names: Sequence[str], group: object, name: str) -> None:
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


def _scan(table: Table, layout: _Layout, split: str | None, targets: Sequence[str] | None) -> _Scan:
    """Check every row, and find splits, groups and label columns; labels are those of the rows that are kept."""
    scan = _Scan(table, layout.folder)
    ids: set[str] = set()
    splits: set[str] = set()
    for number, row in enumerate(table):
        where = table.where(number)
        name = _id(row, number)
        if name in ids:
            raise UserError(f"id must be unique, got {name!r} again in {where}. Rename one, or drop the column.")
        ids.add(name)
        names = layout.pictures(row, where)
        layout.text(row, "question", layout.question_column, where)
        layout.text(row, "answer", layout.answer_column, where)
        layout.boxes(row, names, where)
        scan.add(names, row.get("group"), name)
        if row.get("split") is not None:
            splits.add(str(row["split"]))
        if split is not None and str(row.get("split")) != split:
            continue
        seen_before = len(scan.kept)
        scan.kept.append(number)
        scan.focused &= row.get("focus") is not None
        labels = {**layout.labels(row), "answer": row[layout.answer_column]}
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


def _id(row: Row, number: int) -> str:
    return str(row["id"]) if row.get("id") is not None else str(number)


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _unknown_column(argument: str, column: str, row: Row, where: str) -> UserError:
    return UserError(
        f"{argument} must be a column, got {column!r} in {where}. The row has: {', '.join(row) or 'nothing'}."
    )


def _digest(path: Path, folder: PictureFolder, settings: Sequence[object]) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps([settings, sorted(folder.stats.items())]).encode())
    return digest.hexdigest()[:16]
