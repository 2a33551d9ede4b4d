"""Run steps one after the other inside a time limit, each inside its own."""

import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from benchmarks.on_gpu.records import Records
from benchmarks.on_gpu.step import NOMINAL, Step, Work
from benchmarks.on_gpu.workplace import Workplace

Clock = Callable[[], float]
_LAST = 3.0  # seconds that are kept for the last record and the end of the process


# A step that raises one of these is recorded with its traceback, and the next step runs.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
    ValueError, subprocess.SubprocessError,
)  # fmt: skip


class CutError(BaseException):
    """The time limit of a step is over. It is no ``Exception``, so that a step does not catch it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``CutError`` in the block after a number of seconds; in another thread than the main one, never."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def cut(number: int, frame: object) -> None:
        raise CutError

    handler = signal.signal(signal.SIGALRM, cut)
    began = time.monotonic()
    before, interval = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:  # another timer was running, such as that of a test
            signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - began), 0.01), interval)


def lacking(step: Step) -> list[str]:
    """The packages that a step needs and this machine lacks."""
    return [name for name in step.needs if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package of a module is missing
        return False


def limit_of(step: Step, minutes: float) -> float:
    """Seconds that a step may take at most in a run of ``minutes``."""
    return step.minutes / NOMINAL * minutes * 60


def run_steps(
    steps: Sequence[Step], place: Workplace, records: Records, *, minutes: float, clock: Clock = time.monotonic,
    began: float | None = None,
) -> bool:  # fmt: skip
    """Run every step that is not done and fits; True if none failed.

    Args:
        steps: In order of worth.
        place: The device and the shared model.
        records: Where each step's record is written, after every part of it.
        minutes: The limit of the whole run.
        clock: Seconds; tests replace it.
        began: When the run began, by ``clock``; None for now.
    """
    began = clock() if began is None else began
    good = True
    for step in steps:
        if records.finished(step.name):
            place.log(f"{step.name}: done before")
            continue
        left = began + minutes * 60 - _LAST - clock()
        building = place.model_seconds if step.uses_model else 0.0
        budget = min(limit_of(step, minutes) + building, left)
        reason, work = _planned(step, place, budget)
        if work is None:
            place.log(f"{step.name}: skipped, {reason}")
            records.write(step, "skipped", reason=reason, seconds_left=left)
            continue
        estimate = _estimate(work, place)
        place.log(f"{step.name}: {_said(estimate, work)}; limit {budget:.0f} s, {left:.0f} s left")
        if estimate["seconds"] > budget:
            reason = f"the estimate of {estimate['seconds']:.0f} s is above the limit of {max(budget, 0):.0f} s"
            place.log(f"{step.name}: skipped, {reason}")
            records.write(step, "skipped", reason=reason, estimate=estimate, seconds_left=left)
            continue
        good &= _run(step, work, estimate, budget, place, records, clock)
    return good


def _planned(step: Step, place: Workplace, budget: float) -> tuple[str, Work | None]:
    """The work of a step, or why there is none."""
    if missing := lacking(step):
        return f"{', '.join(missing)} is missing", None
    if budget <= 0:
        return "no time is left", None
    found = step.plan(place, budget)
    return (found, None) if isinstance(found, str) else ("", found)


def _estimate(work: Work, place: Workplace) -> dict[str, Any]:
    products = place.speed.seconds(work.flops, work.bytes_read, dtype=work.dtype)
    return {
        "seconds": work.fixed + products, "fixed": work.fixed, "flops": work.flops, "bytes_read": work.bytes_read,
        "flops_per_second": place.speed.products[work.dtype],
    }  # fmt: skip


def _said(estimate: dict[str, Any], work: Work) -> str:
    return (
        f"estimated {estimate['seconds']:.0f} s ({work.flops:.2g} FLOPs in {work.dtype}, {work.bytes_read:.2g} bytes "
        f"read, {work.fixed:.0f} s fixed; {', '.join(f'{k} {v}' for k, v in work.settings.items())})"
    )


def _run(
    step: Step, work: Work, estimate: dict[str, Any], budget: float, place: Workplace, records: Records, clock: Clock
) -> bool:
    """Run one step and keep what it has measured, whatever ends it; False if it failed."""
    began = clock()
    result: dict[str, Any] = {}
    facts: dict[str, Any] = {"estimate": estimate, "limit": budget, "settings": work.settings}
    place.free()
    try:
        with limited(budget):
            for result in work.run():
                records.write(step, "running", **facts, seconds=clock() - began, result=result)
    except CutError:
        place.log(f"{step.name}: cut after {clock() - began:.0f} s")
        records.write(step, "cut", reason="time limit", **facts, seconds=clock() - began, result=result)
        return True
    except _FAILURES as error:
        place.log(f"{step.name}: failed, {type(error).__name__}: {error}")
        records.write(
            step, "failed", reason=f"{type(error).__name__}: {str(error)[:300]}", **facts, seconds=clock() - began,
            result=result, traceback=traceback.format_exc(),
        )  # fmt: skip
        return False
    finally:
        place.free()
    records.write(step, "done", **facts, seconds=clock() - began, result=result)
    place.log(f"{step.name}: done in {clock() - began:.1f} s")
    return True
