"""The processes of a run: their number, this one's rank, and a barrier.

``accelerate launch ...`` starts several. Otherwise there is one, and the barrier returns at once.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from models.precision import fast_bfloat16
from tasks.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The rank of this process among ``world``. ``wait`` is a barrier: it returns when every process has called it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        """True on rank 0, which makes the folder, writes the results and prints."""
        return self.rank == 0


def launched() -> int:
    """Number of processes that a launcher started; 1 without a launcher. Some may not have joined yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str) -> Processes:
    """Join the processes that a launcher started. Processes on a CPU communicate with gloo."""
    if launched() < 2:
        return Processes()
    from accelerate import PartialState  # takes a second to import, and one process does not need it

    state = PartialState(cpu=not device.startswith("cuda"))
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def own_device(device: str) -> str:
    """The device of this process: ``"cuda"`` becomes the GPU of its local rank. ``UserError`` if it is missing."""
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        raise UserError(f"device must be cpu, cuda, cuda:N or mps, got {device!r}. Leave it out for cpu.")
    n_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if n_devices == 0 or (kind == "cuda" and int(index or 0) >= n_devices):
        raise UserError(f"device must be one that this machine has, got {device!r}. Leave it out for cpu.")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def matmul_speed(device: torch.device | str, dtype: torch.dtype) -> float:
    """Measured speed of a matrix product in floating-point operations a second, for time estimates.

    On a CPU the time is that of the processor, so that other programs do not matter much: estimates are for a machine
    that does nothing else.
    """
    n = 1024  # large enough to be bound by arithmetic, small enough for 50 ms on a slow core
    a = torch.ones(n, n, device=device, dtype=dtype)
    on_cpu = torch.device(device).type == "cpu"
    clock, threads = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    best = float("inf")
    with fast_bfloat16():  # in which the model runs too
        for _ in range(3):
            start = clock()
            float(F.linear(a, a)[0, 0])  # reading a value waits for the device
            best = min(best, (clock() - start) / threads)
    return 2 * n**3 / max(best, 1e-9)
