"""Several processes that share the jobs of one folder: each takes what no other is at, and all wait for the last.

``share_jobs(jobs, run=...)`` needs no launcher: start the same command again, beside or after. A process that dies
gives its job back, for the lock on a job's folder goes with the process.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
_SECONDS = 2.0  # between two looks at what others are doing


@contextmanager
def one_at_a_time(folder: Path, waiting: str, *, on_note: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """One process of a folder is inside the block; others say ``waiting`` and wait until it has left."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_note(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def share_jobs(
    jobs: Mapping[Path, str],
    *,
    is_done: Callable[[Path], bool],
    run: Callable[[Path], None],
    on_done: Callable[[Path], None] = lambda folder: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> None:
    """Runs every job that nobody has done, in order, and comes back when all are done, whoever did them.

    Args:
        jobs: A folder for each, with what messages call it; folders are made where they are missing.
        is_done: Whether a job's result is there.
        run: Does it; what it raises ends this process's share alone.
        on_done: Called for each job once its result is there.
        on_note: Told what this process waits for.
    """
    left, told = list(jobs), ""
    while left:
        busy = [folder for folder in left if not _done_here(folder, is_done, run, on_done)]
        if len(busy) == len(left):
            line = f"other processes are at {', '.join(jobs[folder] for folder in busy)}"
            if line != told:
                on_note(line)
            told = line
            time.sleep(_SECONDS)
        left = busy


def _done_here(
    folder: Path, is_done: Callable[[Path], bool], run: Callable[[Path], None], on_done: Callable[[Path], None]
) -> bool:
    """Whether a job is done, by us if nobody else is at it."""
    if not is_done(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        try:
            if not is_done(folder):  # another process may have ended it just before
                run(folder)
        finally:
            lock.release()
    on_done(folder)
    return True
