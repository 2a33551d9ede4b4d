"""Where the seconds of a run went: one timer for all commands.

    timings = Timings()
    with timings.stage("capture"):
        ...
    str(timings)                           # 12 s: capture 9 s, fits 3 s

``Run.timings`` is written to the end of the manifest, which resumed runs are not compared by.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_SHOWN = 0.005  # share of the whole below which a stage is not named


class Timings:
    """Wall-clock seconds by stage, in the order of their first start. Stages do not overlap.

    Example:
        >>> clock = iter([0.0, 1.0, 10.0, 12.0, 14.0])
        >>> timings = Timings(lambda: next(clock))
        >>> with timings.stage("capture"):
        ...     pass
        >>> with timings.stage("fits"):  # from 12 to 14; the rest of the 14 seconds belongs to no stage
        ...     pass
        >>> timings.seconds
        {'capture': 9.0, 'fits': 2.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._started = clock, clock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context manager: add its time to the stage ``name``."""
        began = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - began

    def elapsed(self) -> dict[str, float]:
        """Seconds by stage, with ``other`` for the rest of the time since the timer was made, to a tenth."""
        rest = self._clock() - self._started - sum(self.seconds.values())
        return {name: round(value, 1) for name, value in {**self.seconds, "other": max(0.0, rest)}.items()}

    def __str__(self) -> str:
        """One line."""
        return describe_seconds(self.elapsed())


def describe_estimate(stages: Mapping[str, float]) -> str:
    """Estimated seconds by stage as one line; the whole is rounded, since it is right within a factor of two.

    Example:
        >>> describe_estimate({"load": 3.0, "runs": 204.0})
        'about 3.5 min: runs 3.4 min, load 3 s'
    """
    whole = sum(stages.values())
    shown = sorted((name for name in stages if stages[name] > _SHOWN * whole), key=lambda name: -stages[name])
    return f"about {rounded_seconds(whole)}: " + ", ".join(f"{name} {rounded_seconds(stages[name])}" for name in shown)


@dataclass(frozen=True)
class TimeEstimate:
    """The work of a run in words, and its estimated time.

    Example:
        >>> print(TimeEstimate("40 examples, 3 x 3 layers", {"fitting probes": 12.3, "figures": 1.5}))
        40 examples, 3 x 3 layers, about 14 s: fitting probes 12 s, figures 2 s
    """

    work: str
    stages: Mapping[str, float]
    """Seconds by stage, named as in the manifest's ``timings``, for a machine that does nothing else."""

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        return f"{self.work}, {describe_estimate(self.stages)}"


def rounded_seconds(seconds: float) -> str:
    """An estimated time with one or two digits, in the unit that suits it.

    Example:
        >>> rounded_seconds(204.0), rounded_seconds(0.3)
        ('3.4 min', '0.3 s')
    """
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 0.95 else f"{seconds:.1f} s"


def describe_seconds(stages: Mapping[str, float]) -> str:
    """The whole time and its stages as one line, the longest first.

    Example:
        >>> describe_seconds({"load": 4.2, "capture": 75.0, "figures": 0.3, "other": 0.1})
        '80 s: capture 75 s, load 4 s'
    """
    whole = sum(stages.values())
    shown = sorted((name for name in stages if stages[name] > _SHOWN * whole), key=lambda name: -stages[name])
    return f"{clock_text(whole)}: " + ", ".join(f"{name} {clock_text(stages[name])}" for name in shown)


def clock_text(seconds: int | float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> [clock_text(seconds) for seconds in (0.42, 80, 700, 9000)]
        ['0.4 s', '80 s', '11 min 40 s', '2 h 30 min']
    """
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds < 0.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
