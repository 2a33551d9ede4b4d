"""How far a long call is: a bar below the cell in a notebook, and nothing elsewhere unless the caller asks for it.

    run_sweep(config)                                       # in a notebook it shows how far it is
    run_sweep(config, on_progress=silent)                   # nowhere
    capture_examples(..., on_progress=shown_progress())     # for what is quiet by itself

The commands show theirs at the terminal, with ``records.terminal.progress_bar``.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

OnProgress = Callable[[str, int, int], None]  # what is done now, how many more are done, how many there are in all

_EVERY = 0.2  # seconds between two updates: more of them flicker, and every one is a message to the browser


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, which can show HTML and change it later."""
    ipython = sys.modules.get("IPython")  # imported by every kernel before the user's first line
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def shown_progress() -> OnProgress:
    """What a long call tells its progress to if the caller named nothing: a bar in a notebook, silence elsewhere."""
    return NotebookProgress() if in_notebook() else silent


@dataclass
class _Stage:
    """One line: a stage lasts from the end of the one before it; its speed is measured behind the first report."""

    total: int
    began: float
    first_at: float
    first_done: int
    done: int = 0
    last_at: float = 0.0

    def times(self) -> str:
        """How long it took so far, and how long it will take if it goes on like that."""
        spent = _spoken(self.last_at - self.began)
        left = self.total - self.done
        if left <= 0 or self.done <= self.first_done:
            return spent
        return f"{spent}, about {_spoken((self.last_at - self.first_at) / (self.done - self.first_done) * left)} left"


class NotebookProgress:
    """A bar below the cell, one line a stage; it stays there, and says in the end how long each stage took.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._last = clock()
        self._shown_at = float("-inf")
        self._handle: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Notes that ``done`` more of ``total`` are done in ``stage``."""
        now = self._clock()
        own = self._stages.setdefault(stage, _Stage(total, self._last, now, done))
        own.done += done
        own.last_at = self._last = now
        if own.done >= own.total or now - self._shown_at >= _EVERY:
            self._shown_at = now
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        shown = {"text/html": self._repr_html_(), "text/plain": str(self)}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call, unused-ignore]
        else:
            self._handle.update(shown, raw=True)

    def __str__(self) -> str:
        """One line a stage."""
        return "\n".join(f"{name}: {own.done}/{own.total}, {own.times()}" for name, own in self._stages.items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{escape(name)}</td>'
            f'<td><progress value="{own.done}" max="{max(own.total, 1)}"></progress></td>'
            f"<td>{own.done} / {own.total}</td>"
            f'<td style="text-align:left">{escape(own.times())}</td></tr>'
            for name, own in self._stages.items()
        )
        return f"<table><tbody>{rows}</tbody></table>"


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
