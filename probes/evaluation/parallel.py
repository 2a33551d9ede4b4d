"""Several sites at a time: fits of a few hundred examples are too small to keep two cores busy, one at a time.

Processes and not threads: such a fit is thousands of small steps, between which threads wait for the interpreter.
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
SMALL = 4_000_000  # numbers in the activations and logits of a site; above, its matrices are large enough for threads
_WORTH = 4  # sites a process; with fewer, starting it costs more seconds than it saves
_PROCESS = 1_000_000_000  # bytes that a process takes, with what such fits hold
_WATCH = 2.0  # seconds between looks at whether the parent is still there


def processes_for(plan: FoldPlan, d: int, n_sites: int, device: str) -> int:
    """How many processes to fit sites in: 0 where one site keeps all threads busy, or is on an accelerator.

    Otherwise one for each of torch's threads, if there are sites and memory enough. Every such fit runs on one thread,
    in this process too, so that the same settings give the same numbers whatever the machine has free.

    Args:
        plan: What is fitted at each site.
        d: Width of the widest site.
        n_sites: How many there are.
        device: Where.
    """
    n = len(plan.groups)
    labelings = sum(max(1, len(t.classes)) * (1 + len(t.controls)) for t in plan.targets.values())
    if device.startswith("cuda") or n * (d + plan.folds * labelings) > SMALL:
        return 0
    room = int(psutil.virtual_memory().available) // _PROCESS
    return max(1, min(torch.get_num_threads(), n_sites // _WORTH, room))


def each_site(work: Callable[[Site], Found], sites: Sequence[Site], *, processes: int) -> Iterator[Found]:
    """``work`` of every site, in order.

    Args:
        work: Called with a site; it travels to the processes with all that it holds on to.
        sites: Which.
        processes: From `processes_for`: 0 for this one with all its threads, 1 for this one with one thread.

    Raises:
        UserError: If a process ended before its site was done.
    """
    if processes == 0:
        yield from map(work, sites)
    elif processes == 1:
        for site in sites:
            yield _on_one_thread(work, site)
    else:
        yield from _side_by_side(work, sites, processes)


def _on_one_thread(work: Callable[[Site], Found], site: Site) -> Found:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(site)
    finally:
        torch.set_num_threads(threads)


def _side_by_side(work: Callable[[Site], Found], sites: Sequence[Site], processes: int) -> Iterator[Found]:
    try:
        with parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
            # Memory-mapped arguments would be read-only, which torch warns of.
            run = Parallel(
                return_as="generator", batch_size=1, max_nbytes=None, initializer=_end_with, initargs=(os.getpid(),)
            )
            yield from run(delayed(_on_one_thread)(work, site) for site in sites)
    except BrokenProcessPool as error:
        raise UserError(
            f"each of {processes} processes must live until its sites are fitted, but one ended "
            f"({' '.join(str(error).split())}). If memory ran out, set OMP_NUM_THREADS=1 and start again."
        ) from error


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a process that waits for the rest of a message would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
