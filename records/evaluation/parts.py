"""Answers on disk while a run goes on: one JSONL file for each benchmark and process, a line for each answer.

A line that was cut when a run was killed is dropped. Any number of processes may go on with a run.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from records.manifest import write_atomically
from records.run import writing

FOLDER = "parts"


def read_parts(folder: Path, name: str, n: int) -> dict[int, str]:
    """The answers of a benchmark that any process has written, by the index of the question, below ``n``."""
    found: dict[int, str] = {}
    for path in sorted((folder / FOLDER).glob(f"{name}.*.jsonl")):
        found |= _read(path, n)
    return found


class PartFile:
    """The file of one process; ``add`` writes answers so that a kill loses at most the last line."""

    def __init__(self, folder: Path, name: str, rank: int, n: int) -> None:
        self._folder = folder
        self._path = folder / FOLDER / f"{name}.{rank}.jsonl"
        if self._path.is_file():
            whole = _read(self._path, n)
            with writing(folder):
                write_atomically(self._path, _lines(whole))  # without a line that was cut

    def add(self, answers: Mapping[int, str]) -> None:
        """Append answers."""
        with writing(self._folder):
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("ab") as file:
                file.write(_lines(answers))


def _lines(answers: Mapping[int, str]) -> bytes:
    return "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in answers.items()).encode()


def _read(path: Path, n: int) -> dict[int, str]:
    found = {}
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            index, text = row["n"], row["text"]
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith(b"\n") and isinstance(index, int) and 0 <= index < n and isinstance(text, str):
            found[index] = text
    return found
