"""Fit several sites at a time. One fit of a few hundred examples is too small to use two cores.

These are processes, not threads: a fit is thousands of small steps that hold the interpreter's lock.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import psutil
import torch
from joblib import Parallel, delayed, parallel_config

from models.sites import Site
from probes.evaluation.folds import FoldPlan
from tasks.errors import UserError

Found = TypeVar("Found")
SMALL = 4_000_000  # numbers in the activations and logits of a site; a larger fit uses all threads well
_WORTH = 4  # sites for each process; with fewer, starting it takes longer than it saves
_PROCESS = 1_000_000_000  # bytes of memory for each process


def processes_for(plan: FoldPlan, d: int, n_sites: int, device: str) -> int:
    """The number of processes for fits of width ``d``: 0 if one site uses all threads or runs on a GPU, else 1 or more.

    Fits in 1 or more processes run on one thread each, so that the results do not depend on the machine's load.
    """
    n = len(plan.groups)
    labelings = sum(max(1, len(t.classes)) * (1 + len(t.controls)) for t in plan.targets.values())
    if device.startswith("cuda") or n * (d + plan.folds * labelings) > SMALL:
        return 0
    room = int(psutil.virtual_memory().available) // _PROCESS
    return max(1, min(torch.get_num_threads(), n_sites // _WORTH, room))


def each_site(work: Callable[[Site], Found], sites: Sequence[Site], *, processes: int) -> Iterator[Found]:
    """Results of ``work`` for every site, in order. ``work`` is pickled for other processes.

    ``processes`` is the result of `processes_for`: 0 is this process with all threads, 1 is this process with one.

    Raises:
        UserError: If a process ends before its site is done.
    """
    if processes < 2:
        for site in sites:
            yield _on_one_thread(work, site) if processes else work(site)
        return
    try:
        with parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
            # Memory-mapped arguments would be read-only, and torch warns of those.
            run = Parallel(
                return_as="generator", batch_size=1, max_nbytes=None, initializer=_end_with, initargs=(os.getpid(),)
            )
            yield from run(delayed(_on_one_thread)(work, site) for site in sites)
    except BrokenProcessPool as error:
        raise UserError(
            f"each of {processes} processes must run until its sites are fitted, but one ended "
            f"({' '.join(str(error).split())}). If memory ran out, set OMP_NUM_THREADS=1 and start again."
        ) from error


def _on_one_thread(work: Callable[[Site], Found], site: Site) -> Found:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(site)
    finally:
        torch.set_num_threads(threads)


def _end_with(parent: int) -> None:
    """End this process at most two seconds after its parent, since it would wait forever for half a message."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
