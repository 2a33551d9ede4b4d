"""JSONL and Parquet files by row: from end to end, or one row at a time; a table is never held in memory."""

import bisect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import UserError

Row = Mapping[str, Any]


def open_table(path: Path) -> "Table":
    """The table in a file, by the ending of its name.

    Raises:
        UserError: If the file does not exist, or is neither JSONL nor Parquet.
    """
    if not path.is_file():
        raise UserError(f"data must be 'scenes' or an existing file, got {str(path)!r}. Check the path.")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if suffix in (".parquet", ".pq"):
        return Parquet(path)
    raise UserError(f"data must end in .jsonl or .parquet, got {str(path)!r}. Convert it to one of the two.")


class JsonLines:
    """A JSONL file, read by the byte offsets of its lines; blank lines are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        starts, offset = [], 0
        with path.open("rb") as file:
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    starts.append((offset, line_number))
                offset += len(line)
        self._starts = np.array(starts, dtype=np.int64).reshape(-1, 2)

    def __iter__(self) -> Iterator[Row]:
        with self._path.open("rb") as file:
            for number, line in enumerate(line for line in file if line.strip()):
                yield self._parse(line, number)

    def __getitem__(self, number: int) -> Row:
        with self._path.open("rb") as file:
            file.seek(int(self._starts[number, 0]))
            return self._parse(file.readline(), number)

    def where(self, number: int) -> str:
        """The line of row ``number``, counted from 1."""
        return f"line {self._starts[number, 1]} of {self._path.name}"

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
            raise UserError(f"row must be JSON, got {self.where(number)}: {error}. Write one object a line.") from error
        if not isinstance(row, dict):
            raise UserError(
                f"row must be a JSON object, got {type(row).__name__} in {self.where(number)}. Write one object a line."
            )
        return row


class Parquet:
    """A Parquet file, read by row groups; the last one is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._file() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self._held: tuple[int, Any] | None = None

    def _file(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self._path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"data must be a readable Parquet file, got {str(self._path)!r} ({error}). Write it again."
            ) from error

    def __iter__(self) -> Iterator[Row]:
        with self._file() as file:
            for batch in file.iter_batches(batch_size=4096):  # large enough for speed, small enough for memory
                yield from batch.to_pylist()

    def __getitem__(self, number: int) -> Row:
        group = bisect.bisect_right(self._starts, number) - 1
        if self._held is None or self._held[0] != group:
            with self._file() as file:
                self._held = (group, file.read_row_group(group))
        rows: list[Row] = self._held[1].slice(number - self._starts[group], 1).to_pylist()
        return rows[0]

    def where(self, number: int) -> str:
        """The row ``number``, counted from 1."""
        return f"row {number + 1} of {self._path.name}"


Table = JsonLines | Parquet
