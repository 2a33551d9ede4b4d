"""JSONL and Parquet files by row: from end to end, or one row at a time; a table is never held in memory."""

import bisect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import UserError, one_line, shown_text
from tasks.files import is_file
from tasks.readers.parse import parse_json

Row = Mapping[str, Any]
_ROWS = 4096  # read at once: large enough for speed, small enough for memory
_BYTES = 1 << 26  # of such rows: those with embedded pictures are large


def open_table(path: Path) -> "Table":
    """The table in a file, by the ending of its name.

    Raises:
        UserError: If the file does not exist, or is neither JSONL nor Parquet.
    """
    if not is_file(path):
        raise UserError(f"data must be 'scenes' or an existing file, got {str(path)!r}. Check the path.")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if is_parquet(path):
        return Parquet(path)
    raise UserError(f"data must end in .jsonl or .parquet, got {str(path)!r}. Convert it to one of the two.")


def is_parquet(path: Path) -> bool:
    """True if the file's name ends as Parquet files do."""
    return path.suffix.lower() in (".parquet", ".pq")


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

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._starts)

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
            row = parse_json(line)
        except ValueError as error:
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
        with self._file() as file, self._readable():
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            names = file.schema_arrow.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"data must have each column once, got {twice!r} twice in {path.name!r}. Rename one.")
        self.columns: tuple[str, ...] = tuple(names)
        self._starts: list[int] = [0, *np.cumsum([group.num_rows for group in groups]).tolist()]
        largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
        self._batch = max(1, min(_ROWS, int(_BYTES / max(1, largest))))
        self._held: tuple[int, Any] | None = None

    def _file(self) -> Any:
        import pyarrow.parquet as pq

        with self._readable():
            return pq.ParquetFile(self._path)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Raise what pyarrow raises on broken files, and on dates and texts that Python cannot hold, as UserError."""
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise UserError(
                f"data must be a readable Parquet file, got {str(self._path)!r} ({shown_text(one_line(error))}). Write "
                "it again."
            ) from error

    def __len__(self) -> int:
        """The number of rows."""
        return self._starts[-1]

    def __iter__(self) -> Iterator[Row]:
        with self._file() as file:
            batches = file.iter_batches(batch_size=self._batch)
            while True:
                with self._readable():
                    batch = next(batches, None)
                    rows = [] if batch is None else batch.to_pylist()
                if batch is None:
                    return
                yield from rows

    def __getitem__(self, number: int) -> Row:
        group = bisect.bisect_right(self._starts, number) - 1
        if self._held is None or self._held[0] != group:
            with self._file() as file, self._readable():
                self._held = (group, file.read_row_group(group))
        with self._readable():
            rows: list[Row] = self._held[1].slice(number - self._starts[group], 1).to_pylist()
        return rows[0]

    def where(self, number: int) -> str:
        """The row ``number``, counted from 1."""
        return f"row {number + 1} of {self._path.name}"


Table = JsonLines | Parquet
