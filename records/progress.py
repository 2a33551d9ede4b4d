"""Progress of a long call: a bar for each stage at a terminal or in a notebook, nothing elsewhere or on other ranks.

run_sweep(config)                                          # shows progress bars in a terminal or notebook
run_sweep(config, on_progress=silent)                      # shows none
capture_examples(..., on_progress=ProgressBars())          # for a call that shows none by default
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from tasks.errors import printable

OnProgress = Callable[[str, int, int], None]  # the stage, the number newly done, the total


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def in_notebook() -> bool:
    """True in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")  # every kernel imports it before the first cell
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class PartProgress:
    """Progress of a part of a stage that reports its own steps, such as the cells of a batch.

    It never reports more than its ``size``, and ``finish`` reports what is missing.

    Example:
        >>> told = []
        >>> part = PartProgress(lambda stage, done, total: told.append(done), "cells", size=5, total=20)
        >>> part.add(3)
        >>> part.finish()
        >>> told
        [3, 2]
    """

    def __init__(self, on_progress: OnProgress, stage: str, *, size: int, total: int) -> None:
        self._on_progress, self._stage, self._left, self._total = on_progress, stage, size, total

    def add(self, steps: int) -> None:
        """Report steps that are newly done."""
        steps = min(steps, self._left)
        if steps:
            self._left -= steps
            self._on_progress(self._stage, steps, self._total)

    def finish(self) -> None:
        """Report all remaining steps."""
        self.add(self._left)


class ProgressBars:
    """One tqdm bar for each stage, with rate and time left. A bar closes when its stage is done.

    Example:
        >>> bars = ProgressBars(is_main=False)  # silent, as on all ranks except 0
        >>> bars("capture", done=1, total=10)
        >>> bars.close()
    """

    def __init__(self, *, is_main: bool | None = None) -> None:
        is_main = os.environ.get("RANK", "0") == "0" if is_main is None else is_main
        self.shown = is_main and (in_notebook() or sys.stderr.isatty())
        self._bars: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Add ``done`` of ``total`` to the bar of ``stage``."""
        if not self.shown:
            return
        if stage not in self._bars:
            from tqdm.auto import tqdm

            self._bars[stage] = tqdm(total=total, desc=stage, file=sys.stderr)
        bar = self._bars[stage]
        bar.update(done)
        if bar.n >= total:
            bar.close()

    def note(self, line: str) -> None:
        """Print a line above the bars; control characters in it are escaped."""
        line = printable(line, keep="\n")
        if any(not bar.disable and bar.n < bar.total for bar in self._bars.values()):
            from tqdm.auto import tqdm

            tqdm.write(line, file=sys.stdout)
        else:
            print(line)

    def close(self) -> None:
        """Close the bars of stages that are not done."""
        for bar in self._bars.values():
            bar.close()
