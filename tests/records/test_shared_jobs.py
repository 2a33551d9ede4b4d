"""Jobs that several processes share: each done once, taken over from who died, waited for."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from records.shared_jobs import LOCK, one_at_a_time, share_jobs

ROOT = Path(__file__).parents[2]
WORKER = """
import os, signal, sys, time
from pathlib import Path
from records.shared_jobs import share_jobs
folder, dies = Path(sys.argv[1]), sys.argv[2]
def run(job):
    print(job.name, flush=True)
    if job.name == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    (job / "done").write_text(str(os.getpid()))
share_jobs({folder / f"job{k}": f"job {k}" for k in range(6)}, is_done=lambda job: (job / "done").is_file(), run=run)
assert all((folder / f"job{k}" / "done").is_file() for k in range(6))
"""


def start(folder: Path, dies: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), dies], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_do_every_job_once_and_both_wait_for_the_last(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    printed = [process.communicate(timeout=60)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(printed[0] + printed[1]) == [f"job{k}" for k in range(6)]
    assert all(printed)  # each had a share


def test_the_job_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    killed = start(tmp_path, dies="job1")
    assert (killed.communicate(timeout=60)[0].split(), killed.returncode) == (["job0", "job1"], -signal.SIGKILL)
    after = start(tmp_path)
    assert after.communicate(timeout=60)[0].split() == [f"job{k}" for k in range(1, 6)]
    assert after.returncode == 0


def test_a_job_that_another_is_at_is_skipped_named_and_waited_for(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    other, ran, notes = FileLock(first / LOCK), [], []
    other.acquire()

    def note(line: str) -> None:
        notes.append(line)
        (first / "done").touch()
        other.release()

    def run(job: Path) -> None:
        ran.append(job.name)
        (job / "done").touch()

    told: list[str] = []
    worker = threading.Thread(
        target=lambda: share_jobs(
            {first: "the first", second: "the second"}, is_done=lambda job: (job / "done").is_file(), run=run,
            on_done=lambda job: told.append(job.name), on_note=note,
        )
    )  # fmt: skip
    worker.start()
    worker.join(timeout=30)
    assert not worker.is_alive()
    assert (ran, notes, told) == (["second"], ["other processes run the first"], ["second", "first"])


def test_what_a_job_raises_ends_it_and_frees_its_lock(tmp_path: Path) -> None:
    def fail(job: Path) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        share_jobs({tmp_path / "a": "a"}, is_done=lambda job: False, run=fail)
    FileLock(tmp_path / "a" / LOCK).acquire(timeout=0).lock.release()
    assert os.listdir(tmp_path) == ["a"]


def test_whoever_finds_the_block_taken_says_so_and_waits(tmp_path: Path) -> None:
    told, inside = threading.Event(), list[str]()

    def late() -> None:
        with one_at_a_time(tmp_path, "waiting", on_note=lambda line: told.set()):
            inside.append("late")

    worker = threading.Thread(target=late)
    with one_at_a_time(tmp_path, "", on_note=lambda line: pytest.fail("nobody is there")):
        worker.start()
        assert told.wait(timeout=30)
        assert worker.is_alive() and not inside
        inside.append("early")
    worker.join(timeout=30)
    assert inside == ["early", "late"]
