"""What a step is: a name, a share of the time, the packages it needs, and how it plans its work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from benchmarks.on_gpu.workplace import Workplace

Number = Literal["float32", "bfloat16"]


class Work(NamedTuple):
    """The work of one step, sized to fit its limit."""

    run: Callable[[], Iterator[dict[str, Any]]]
    """Yields everything measured so far, each time there is more."""
    settings: dict[str, Any]
    """What was chosen to fit the limit."""
    flops: float = 0.0
    """Floating-point operations of all products."""
    bytes_read: float = 0.0
    """Bytes that steps of decoding read, which take longer than their products."""
    fixed: float = 0.0
    """Seconds of everything else, such as starting a process."""
    dtype: Number = "bfloat16"
    """The type of the products."""


@dataclass(frozen=True)
class Step:
    """One step of the run."""

    name: str
    question: str
    """What the step measures, in one line."""
    minutes: float
    """Its limit, of a run of ``NOMINAL`` minutes."""
    plan: Callable[[Workplace, float], Work | str]
    """The work that fits a number of seconds, or the reason why none does."""
    needs: tuple[str, ...] = ()
    """Packages without which the step is skipped."""
    uses_model: bool = False
    """Whether it uses the shared model. The time to build the model is added to the limit of the first such step."""


NOMINAL = 8.0  # minutes of a run for which the limits of the steps are given
