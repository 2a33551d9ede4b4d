"""``log.jsonl`` of a training run: one JSON object per line, with its step."""

import json
from collections.abc import Mapping
from pathlib import Path

from records.manifest import write_atomically
from tasks.readers.parse import parse_json

LOG = "log.jsonl"


def add_to_log(folder: Path, entry: Mapping[str, int | float]) -> None:
    """Append one line to the log of ``folder``."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(entry)) + "\n")


def trim_log(folder: Path, step: int, *, evaluations: bool = False) -> None:
    """Drop the lines after ``step``, which a resumed run writes again; all lines if ``step`` is 0.

    With ``evaluations``, also drop the evaluations at ``step`` itself.
    """
    path = folder / LOG
    if path.is_file():
        kept = [
            line
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if _is_kept(line, step, evaluations)
        ]
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


def _is_kept(line: str, step: int, evaluations: bool) -> bool:
    try:
        entry = parse_json(line)
    except ValueError:
        return False  # truncated when the process was killed or the disk was full
    at = entry.get("step") if isinstance(entry, dict) else None
    if not isinstance(at, int):
        return False  # not a line that a run wrote
    again = at == step and evaluations and any(key.startswith("eval/") for key in entry)
    return step > 0 and at <= step and not again
