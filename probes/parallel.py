"""Several sites at a time: fits of a few hundred examples are too small to keep two cores busy, one at a time.

Processes and not threads: such a fit is thousands of small steps, between which threads wait for the interpreter.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import psutil
import torch
from joblib import Parallel, delayed, parallel_config

from models.sites import Site
from probes.batch import BATCH
from probes.folds import Plan
from records.errors import BadInput

Found = TypeVar("Found")
_WORTH = 4  # sites a process; with fewer, starting it costs more seconds than it saves
_PROCESS = 1_000_000_000  # bytes that a process takes before it fits anything, and some room


def sites_at_once(plan: Plan, d: int, n_sites: int, device: str) -> int:
    """How many sites to fit side by side: as many as torch has threads, within the memory of one full batch of fits.

    One means that sites come one by one, each with all threads, which is faster where its matrices are large.

    Args:
        plan: What is fitted at each.
        d: Width of the widest site.
        n_sites: How many there are.
        device: Where; on an accelerator sites come one by one.
    """
    if device != "cpu":
        return 1
    n = len(plan.groups)
    labelings = sum(max(1, len(t.classes)) * (1 + len(t.controls)) for t in plan.targets.values())
    limits = (
        torch.get_num_threads(),
        n_sites // _WORTH,
        BATCH // (n * (d + plan.folds * labelings)),
        int(psutil.virtual_memory().available) // _PROCESS,
    )
    return max(1, min(limits))


def each_site(work: Callable[[Site], Found], sites: Sequence[Site], *, at_once: int) -> Iterator[Found]:
    """``work`` of every site, in order, in ``at_once`` processes of one thread each; in this process if that is one.

    Args:
        work: Called with a site; it travels to the processes with all that it holds on to.
        sites: Which.
        at_once: From `sites_at_once`.

    Raises:
        BadInput: If a process was killed.
    """
    if at_once == 1:
        yield from map(work, sites)
        return
    try:
        with parallel_config("loky", n_jobs=at_once, inner_max_num_threads=1):
            # Memory-mapped arguments would be read-only, which torch warns of.
            yield from Parallel(return_as="generator", batch_size=1, max_nbytes=None)(
                delayed(work)(site) for site in sites
            )
    except BrokenProcessPool as error:
        raise BadInput(
            f"memory must hold the fits of {at_once} sites side by side, but one of the processes was killed. Start "
            "again with OMP_NUM_THREADS=1 to fit one at a time."
        ) from error
