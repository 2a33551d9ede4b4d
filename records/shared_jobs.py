"""Several processes in one folder: locks, and jobs that several processes share without a launcher.

To share the jobs of ``share_jobs``, start the same command again, at the same time or later. Each process takes jobs
that no other process runs, and all wait for the last one. If a process dies, its lock ends and another takes the job.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import UserError

LOCK = ".lock"
_SECONDS = 2.0  # between two checks of the jobs of other processes


@contextmanager
def one_at_a_time(
    folder: Path, waiting: str | None = None, *, on_note: Callable[[str], None] = lambda line: None
) -> Iterator[None]:
    """Hold the lock of a folder while the context is open.

    If another process holds it, call ``on_note`` once with ``waiting`` and wait; raise ``UserError`` if ``waiting`` is
    None.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as taken:
        if waiting is None:
            raise UserError(
                f"out must not be in use, got {str(folder)!r}, in which another process writes. Wait until it ends, or "
                "choose another folder."
            ) from taken
        on_note(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """True if another process holds the lock of a folder."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def share_jobs(
    jobs: Mapping[Path, str],
    *,
    is_done: Callable[[Path], bool],
    run: Callable[[Path], None],
    on_done: Callable[[Path], None] = lambda folder: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> None:
    """Run every job that is not done, in order, and return when all are done by this process or another.

    Args:
        jobs: The folder of each job, and its name in messages. Missing folders are made.
        is_done: True if the job's result exists.
        run: Runs a job. Its exceptions end only this process.
        on_done: Called for each job once its result exists.
        on_note: Called with the names of the jobs that this process waits for.
    """
    left, noted = list(jobs), ""
    while left:
        busy = [folder for folder in left if not _done_here(folder, is_done, run, on_done)]
        if len(busy) == len(left):
            line = f"other processes run {', '.join(jobs[folder] for folder in busy)}"
            if line != noted:
                on_note(line)
            noted = line
            time.sleep(_SECONDS)
        left = busy


def _done_here(
    folder: Path, is_done: Callable[[Path], bool], run: Callable[[Path], None], on_done: Callable[[Path], None]
) -> bool:
    """True if a job is done; run it if it is not done and no other process runs it."""
    if not is_done(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            if not is_done(folder):  # another process may have finished it just before
                run(folder)
        finally:
            lock.release()
    on_done(folder)
    return True
