"""What a command comes to: its exit status, what it prints, and its folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    """The end of a command."""

    code: int
    out: str
    err: str
    folder: Path


Run = Callable[..., Outcome]


def outcome_of(
    main: Callable[[Sequence[str]], None], words: Sequence[object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> Outcome:
    """Run a command in this process with ``--out folder``."""
    code = 0
    try:
        main([*map(str, words), "--out", str(folder)])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err, folder)
