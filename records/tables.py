"""The results of a run. They are written last, so a run with results is finished."""

import time
from pathlib import Path

import pandas as pd

from records.manifest import RunKind, commit, read_manifest
from tasks.checksums import check_whole
from tasks.errors import UserError, user_errors
from tasks.files import is_file


def write_results(folder: Path, results: pd.DataFrame) -> None:
    """Write ``results.csv``, then ``results.parquet``, each atomically and with its checksum."""
    commit(folder / "results.csv", results.to_csv(index=False).encode())
    commit(folder / "results.parquet", results.to_parquet(index=False))


def restore_csv(folder: Path) -> None:
    """Write ``results.csv`` of a finished run again if it was removed."""
    path = folder / "results.parquet"
    if is_file(path) and not is_file(folder / "results.csv"):
        commit(folder / "results.csv", read_table(path).to_csv(index=False).encode())


def read_results(folder: Path, kind: RunKind) -> pd.DataFrame:
    """The results of a finished run; raise ``UserError`` if the folder contains none."""
    manifest = read_manifest(folder, kind)
    if manifest is None:
        raise UserError(f"run must be a folder that {kind.command} wrote, got {str(folder)!r}. Check the path.")
    path = folder / "results.parquet"
    if not path.is_file() or manifest.get("finished", True) is None:
        raise UserError(f"run must be finished, got one without results in {str(folder)!r}. Start it again to resume.")
    return read_table(path)


def read_table(path: Path) -> pd.DataFrame:
    """A table that a run wrote, Parquet or CSV by its name; only empty cells of a CSV file are missing values.

    Raises:
        UserError: If the file is missing, changed, or no table.
    """
    check_whole(path, advice="Start the same command again: the table is made anew.")
    with user_errors(OSError, ValueError):
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=False, na_values=[""])


def skipped_note(folder: Path) -> tuple[str, ...]:
    """The sentence about the examples that ``skipped.csv`` of a run lists; none if it has no such file."""
    path = folder / "skipped.csv"
    return (f"{len(read_table(path))} examples left out, see {path}",) if path.is_file() else ()


def clock(seconds: float) -> str:
    """Seconds since the epoch as a date and time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
