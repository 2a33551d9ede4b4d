"""Run directories: check settings and disk space, lock, resume or replace, write the results.

    run = Run(config.folder, KIND, config.settings, command=command, overwrite=config.overwrite)  # or UserError
    llava = open_model(...)
    check_space(n_bytes, config.folder, what="activations", advice="Use fewer sites.")
    with run.open(processes, model=describe_model(llava), data={"digest": digest}):
        ...                                    # write files with ``records.manifest.commit``
        if processes.is_main and not run.is_finished:
            run.finish(results)

Equal settings resume the run in a folder; other settings raise ``UserError`` unless ``overwrite`` is set.
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from records.html import run_html
from records.manifest import FILE, RunKind, difference, new_manifest, read_manifest, write_manifest
from records.processes import Processes
from records.shared_jobs import is_locked, one_at_a_time
from records.tables import clock, restore_csv, write_results
from records.timings import Timings, describe_seconds
from tasks.checksums import damaged_files, missing_files, record_found
from tasks.errors import UserError, is_full
from tasks.files import is_file

RESERVE = 64 * 1024**2  # bytes that stay free for results, figures and other programs


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run. It shows its table and its main figure in a notebook.

    Example:
        >>> scores = pd.DataFrame({"layer": [0, 1], "score": [0.5, 0.9]})
        >>> finished = FinishedRun(Path("runs/made"), scores, Table("layer", "score"))
        >>> finished.results["score"].max(), finished.figures
        (np.float64(0.9), ())
    """

    folder: Path
    """The run directory."""
    results: pd.DataFrame
    """The table; ``docs/results.md`` describes the columns."""
    summary: Table
    """A short table for people."""
    figures: tuple[Path, ...] = ()
    """PNG files, the main one first."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader, for example how many examples are left out."""
    table: str = "results.csv"
    """Name of the file that holds ``results``."""
    timings: str = ""
    """Where the seconds of the call that finished the run went; empty if it is not recorded."""

    def _repr_html_(self) -> str:
        figure = self.figures[0] if self.figures else None
        return run_html(self.summary, figure=figure, folder=self.folder, notes=self.notes)


class Run:
    """A run directory between the check of its settings and its finished results.

    Args:
        folder: The run directory; it need not exist.
        kind: The command that writes it.
        settings: Every option that decides the results, as ``records.options.settings_of`` returns them.
        command: The command line, for the manifest.
        overwrite: Replace the run in the directory.

    Raises:
        UserError: If the folder contains other files, or a run with other settings and ``overwrite`` is False.
    """

    def __init__(
        self,
        folder: Path,
        kind: RunKind,
        settings: Mapping[str, Any],
        *,
        command: Sequence[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.folder, self.kind, self.overwrite = folder, kind, overwrite
        self.manifest = new_manifest(kind, settings)
        self._command, self._started = list(command), time.time()
        self.timings = Timings()
        check_folder(folder, self.manifest, kind, overwrite=overwrite)

    @property
    def is_finished(self) -> bool:
        """True if the manifest says so, and the files that a finished run needs are there and as they were written."""
        manifest = read_manifest(self.folder, self.kind)
        return bool(manifest and manifest.get("finished")) and not (self.missing or self.damaged)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of files that a finished run needs and that were removed."""
        needs = (self.kind.last, *self.kind.needs)
        gone = [name for name in missing_files(self.folder) if name in self.kind.keeps]
        return (*(name for name in needs if not is_file(self.folder / name)), *gone)

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of files in the directory itself that changed since the run wrote them."""
        return tuple(name for name in damaged_files(self.folder) if self.kind.owns(name))

    def prepare(self, **known: Any) -> None:
        """Create, resume or empty the directory.

        ``known`` are further entries of the manifest, such as ``model`` and ``data``; a resumed run must have them too.

        Raises:
            UserError: If the directory cannot be written or contains another run.
        """
        self.manifest |= known
        about = {"command": self._command, "started": clock(self._started), "finished": None, "seconds": None}
        open_run(self.folder, {**self.manifest, **about}, self.kind, overwrite=self.overwrite)

    @contextmanager
    def open(
        self, processes: Processes, *, on_note: Callable[[str], None] = lambda line: None, **known: Any
    ) -> Iterator[None]:
        """Prepare the directory on rank 0, and lock it while the context is open. All processes wait until it is ready.

        ``on_note`` is called for each damaged or missing file of the directory; the run then counts as unfinished.

        Raises:
            UserError: As ``prepare``, and if another command uses the directory.
        """
        with contextlib.ExitStack() as stack:
            if processes.is_main:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(one_at_a_time(self.folder))
                except OSError as error:
                    raise UserError(f"out must be a writable folder, got {str(self.folder)!r} ({error}).") from error
                self.prepare(**known)
                # Of an earlier call, if it was copied without its ledger.
                record_found(
                    self.folder, {self.kind.last, "results.csv", *self.kind.needs, *self.kind.keeps},
                    {".parquet", ".safetensors"},
                )  # fmt: skip
                for name in self.damaged:
                    on_note(f"{name} is damaged: the run counts as unfinished")
                if (read_manifest(self.folder, self.kind) or {}).get("finished"):
                    for name in self.missing:
                        on_note(f"{name} is gone: the run counts as unfinished")
                    if self.is_finished:
                        with writing(self.folder):
                            restore_csv(self.folder)
            processes.wait()
            yield

    def finish(self, results: pd.DataFrame | None = None) -> None:
        """Write the table, if there is one, and the time in the manifest."""
        with writing(self.folder):
            before = read_manifest(self.folder, self.kind) or {}
            about = {
                "command": self._command,
                "started": before.get("started"),
                "finished": clock(time.time()),
                "seconds": round(time.time() - self._started, 1),
            }
            if results is not None:
                write_results(self.folder, results)
            write_manifest(self.folder, {**self.manifest, **about, "timings": self.timings.elapsed()})

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Context manager for the figures of a run that this call finished: adds their time to the manifest."""
        with self.timings.stage("figures"):
            yield
        manifest = read_manifest(self.folder, self.kind)
        if manifest is not None:
            with writing(self.folder):
                write_manifest(self.folder, {**manifest, "timings": self.timings.elapsed()})


def read_timings(folder: Path, kind: RunKind) -> str:
    """Where the seconds of a finished run went, as one line; empty if its manifest does not hold it."""
    stages = (read_manifest(folder, kind) or {}).get("timings")
    return describe_seconds(stages) if isinstance(stages, dict) and stages else ""


def check_folder(folder: Path, wanted: Mapping[str, Any], kind: RunKind, *, overwrite: bool) -> bool:
    """True if ``folder`` holds a run that ``wanted`` resumes. Nothing is written.

    ``wanted`` is the manifest of the new run, or a part of it. With ``overwrite`` a different run is accepted, which
    ``open_run`` then replaces.

    Raises:
        UserError: If the folder is a file, contains files that no run wrote, or contains a different run.
    """
    if "\0" in str(folder):
        raise UserError(f"out must be a path without null bytes, got {str(folder)!r}. Choose another name.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out must be a folder, got the file {str(folder)!r}. Choose another name.")
    # Hidden files are locks and temporary files.
    entries = sorted(e.name for e in folder.iterdir() if not e.name.startswith(".")) if folder.is_dir() else []
    if not entries:
        return False
    manifest = read_manifest(folder, kind)
    foreign = [name for name in entries if not kind.owns(name)]
    if foreign or manifest is None:
        seen = foreign or entries
        raise UserError(
            f"out must be empty or contain a run of {kind.command}, got {seen[0]!r}"
            f"{f' and {len(seen) - 1} more' if len(seen) > 1 else ''} in {str(folder)!r}. Choose another folder."
        )
    differing = difference(manifest, wanted)
    if differing is not None and not overwrite:
        raise UserError(
            f"out must contain the same run or none, got a run in {str(folder)!r} that differs: {differing}. "
            "Choose another folder with --out, or replace it with --overwrite."
        )
    return differing is None


def open_run(folder: Path, manifest: Mapping[str, Any], kind: RunKind, *, overwrite: bool) -> None:
    """Create or resume the run directory; if ``overwrite`` is set, empty it. Raises as ``check_folder``."""
    resumes = check_folder(folder, manifest, kind, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if not resumes or overwrite:
            if (folder / FILE).is_file():  # from here on the old run is no longer complete
                write_manifest(folder, {**(read_manifest(folder, kind) or {}), "finished": None})
            # The manifest is removed last: a folder without one is not a run directory.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == FILE):
                if kind.owns(path.name):
                    _remove(path)
            write_manifest(folder, manifest)
    except OSError as error:
        raise UserError(f"out must be a writable folder, got {str(folder)!r} ({error}).") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written; folders in which another process holds a lock are left out."""
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir() and not path.is_symlink()
        if path.name.startswith(".") and path.name.endswith((".tmp", ".partial")):
            _remove(path)
        elif is_folder and not is_locked(path):
            remove_leftovers(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Re-raise an ``OSError`` inside the context, such as a full disk, as ``UserError``."""
    try:
        yield
    except OSError as error:
        raise write_error(error, folder) from error


def write_error(error: OSError, folder: Path) -> UserError:
    """The error of a write into a run directory: advice on space only where space is what is missing."""
    got, kept = error.strerror or error, "start the same command again: finished parts are kept."
    if is_full(error):
        return UserError(
            f"out must be a folder with room on the disk, got {got} at {str(folder)!r}. Free some space and {kept}"
        )
    path = str(error.filename or folder)
    advice = "Choose a shorter path." if error.errno == errno.ENAMETOOLONG else f"Correct this and {kept}"
    return UserError(f"out must be a folder that can be read and written, got {got} at {path!r}. {advice}")


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of ``folder``, which need not exist."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_space(n_bytes: int, folder: Path, *, what: str, advice: str) -> None:
    """Raise ``UserError`` unless ``n_bytes`` fit on the disk of ``folder`` and leave ``RESERVE``.

    For the message, ``what`` names the data and ``advice`` says how to reduce them.
    """
    free = free_bytes(folder)
    if n_bytes + RESERVE > free:
        raise UserError(
            f"{what} must fit on the disk, got {n_bytes / 1e6:.0f} MB for {free / 1e6:.0f} MB free at "
            f"{str(folder)!r}. {advice}"
        )
