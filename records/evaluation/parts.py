"""Answers on disk while a run goes on: one JSONL file for each benchmark and process, a line for each answer.

A line that was cut when a run was killed is dropped; a changed one is named. The questions of both are asked again. Any
number of processes may go on with a run.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from records.manifest import write_atomically
from records.run import writing
from tasks.checksums import checked_line, read_checked_line

FOLDER = "parts"
_ENTRIES = {"n", "text"}


def read_parts(
    folder: Path, name: str, n: int, *, on_note: Callable[[str], None] = lambda line: None
) -> dict[int, str]:
    """The answers of a benchmark that any process has written, by the index of the question, below ``n``.

    ``on_note`` is called for each line that changed since it was written, which is left out.
    """
    found: dict[int, str] = {}
    for path in sorted((folder / FOLDER).glob(f"{name}.*.jsonl")):
        found |= _read(path, n, on_note)
    return found


class PartFile:
    """The file of one process; ``add`` writes answers so that a kill loses at most the last line."""

    def __init__(self, folder: Path, name: str, rank: int, n: int) -> None:
        self._folder = folder
        self._path = folder / FOLDER / f"{name}.{rank}.jsonl"
        if self._path.is_file():
            whole = _read(self._path, n)
            with writing(folder):
                write_atomically(self._path, _lines(whole))  # without lines that were cut or changed

    def add(self, answers: Mapping[int, str]) -> None:
        """Append answers."""
        with writing(self._folder):
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab") as file:
                file.write(_lines(answers))


def _lines(answers: Mapping[int, str]) -> bytes:
    return b"".join(checked_line({"n": n, "text": text}) for n, text in answers.items())


def _read(path: Path, n: int, on_note: Callable[[str], None] = lambda line: None) -> dict[int, str]:
    found = {}
    for number, line in enumerate(_ended_lines(path), 1):
        try:
            row = read_checked_line(line, known=_ENTRIES)
        except ValueError:
            on_note(f"line {number} of {FOLDER}/{path.name} is damaged: its question is asked again")
            continue
        index, text = row.get("n"), row.get("text")
        if isinstance(index, int) and 0 <= index < n and isinstance(text, str):
            found[index] = text
    return found


def _ended_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; the last one is left out if it was cut."""
    *lines, last = path.read_bytes().split(b"\n")
    del last  # empty, or cut
    return (line + b"\n" for line in lines)
