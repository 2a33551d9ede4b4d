"""Run a command in a forked process and judge how it ended, by one rule for every input.

A command ends with status 0, or with status 2 and one sentence on stderr. It prints no traceback, takes at most 20 s
and a few GB of memory, writes nothing outside its run, and leaves nothing half-written that looks complete.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

SECONDS = 20.0
_MEMORY = 12 * 2**30  # bytes of address space, of which torch reserves a part
_LONGEST = 400  # characters
COMMANDS = {
    "probe-sweep": "probes.cli",
    "patch-sweep": "interventions.cli",
    "layerwise-finetune": "tuning.cli",
    "inference-cost": "interventions.token_plans.cli",
    "capture-activations": "probes.activations.cli",
    "geometry-sweep": "probes.geometry.sweep.cli",
    "transfer-sweep": "probes.transfer.cli",
    "lens-sweep": "probes.lenses.cli",
    "benchmark-eval": "records.evaluation.cli",
    "figures": "figures.__main__",
}
# What the commands import late; a forked process has them already.
_LATE = (
    "probes.sweep", "interventions.sweep", "tuning.run", "tuning.compare.compare", "interventions.token_plans.sweep",
    "probes.activations.capture_run", "probes.geometry.sweep.run", "probes.transfer.sweep", "probes.lenses.sweep",
    "records.evaluation.run", "figures.runs", "figures.report.page", "peft", "yaml", "sklearn.linear_model",
)  # fmt: skip
_LAST = ("results.parquet", "cost.json", "compare.csv")  # files of finished runs


class Outcome(NamedTuple):
    """How a command ended; the status is negative for a signal, None for a command that was stopped after 20 s."""

    status: int | None
    out: str
    err: str
    seconds: float


_SERVER = get_context("forkserver")  # forked from a process without threads, whose locks nobody holds
_SERVER.set_forkserver_preload([__name__, *COMMANDS.values(), *_LATE])


def start(
    command: str, arguments: Sequence[str], folder: Path, *, before: Callable[[], None] | None = None
) -> BaseProcess:
    """Start a command in a forked process with ``folder`` as its working directory, after ``before()`` there."""
    process = _SERVER.Process(target=_run, args=(command, list(arguments), folder, before))
    process.start()
    return process


def _run(command: str, arguments: Sequence[str], folder: Path, before: Callable[[], None] | None) -> None:
    status = 70
    try:
        if before is not None:
            before()
        status = _child(command, arguments, folder)
    finally:
        os._exit(status)


def _child(command: str, arguments: Sequence[str], folder: Path) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f".{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb"), encoding="utf-8") for n in (1, 2))
    sys.argv = [command, *arguments]
    status = 0
    try:
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        import_module(COMMANDS[command]).main(list(arguments))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return status


def wait(
    process: BaseProcess,
    folder: Path,
    seconds: float = SECONDS,
    at: Callable[[float], int | None] = lambda passed: None,
) -> Outcome:
    """Wait for a started command. ``at`` gets the seconds since the start, and returns a signal to send, or None."""
    began = time.monotonic()
    assert process.pid is not None
    while True:
        passed = time.monotonic() - began
        if process.exitcode is not None:
            files = (folder / f".{name}.txt" for name in ("out", "err"))
            out, err = (file.read_text("utf-8", "replace") if file.is_file() else "" for file in files)
            return Outcome(process.exitcode, out, err, passed)
        if passed > seconds:
            process.kill()
            process.join()
            return Outcome(None, "", "", passed)
        if (sent := at(passed)) is not None:
            os.kill(process.pid, sent)
        process.join(0.005)


def snapshot(folder: Path, *, without: str = "run") -> dict[str, tuple[int, int]]:
    """Sizes and times of the files in ``folder``, without the run's and hidden ones."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] != without and not parts[0].startswith(".") and path.is_file() and not path.is_symlink():
            about = path.stat()
            found["/".join(parts)] = about.st_size, about.st_mtime_ns
    return found


def faults(outcome: Outcome, run: Path, *, fresh: bool = True) -> list[str]:
    """What is wrong with the end of a command, and with the run that it leaves; ``fresh`` if there was none before."""
    if outcome.status is None:
        return [f"no end within {SECONDS:.0f} s"]
    found = []
    said = outcome.out + outcome.err
    if "Traceback (most recent call last)" in said:
        found.append(f"traceback: {(outcome.err or outcome.out).strip().splitlines()[-1][:200]}")
    elif outcome.status not in (0, 2):
        found.append(f"status {outcome.status}: {outcome.err[-200:]}")
    elif outcome.status == 2:
        lines = [line for line in outcome.err.splitlines() if line.strip() and not line.startswith("usage:")]
        if len(lines) != 1:
            found.append(f"{len(lines)} lines on stderr: {lines[:3]}")
        elif len(lines[0].partition(": ")[2]) > _LONGEST:
            found.append(f"a sentence of {len(lines[0])} characters")
    if any(ord(one) < 32 and one not in "\n\r\t" for one in said):
        found.append("control characters in the output")
    if outcome.status != 0 and fresh and looks_complete(run):
        found.append("a refused run looks complete")
    if outcome.status is not None and run.is_dir() and not run.is_symlink():
        left = [path.name for path in run.rglob(".*") if path.name.endswith((".tmp", ".partial"))]
        if left and outcome.status >= 0:
            found.append(f"left behind: {left}")
    return found


def looks_complete(run: Path) -> bool:
    """True if a run directory holds the last file of its command, or a manifest that says it is finished."""
    if not run.is_dir():
        return False
    with contextlib.suppress(OSError, ValueError):
        if json.loads((run / "manifest.json").read_text()).get("finished"):
            return True
    return not (run / "manifest.json").is_file() and any((run / name).is_file() for name in _LAST)
