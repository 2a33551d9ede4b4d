"""Damage to the files of a run, as a faulty disk or an editor does it."""

import json
from pathlib import Path


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a file, in its middle if ``place`` is None."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def unfinish(folder: Path) -> None:
    """Make a finished run one that was killed before its end."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": None}))
