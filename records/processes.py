"""How many processes share a run, which of them this is, and how they wait for each other.

``accelerate launch ...`` starts several; anything else is one process, which waits for nobody.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from models.precision import fast_bfloat16
from tasks.errors import UserError


def _nobody() -> None:
    return None


@dataclass(frozen=True)
class Processes:
    """This process among ``world``; ``wait`` returns when all of them have called it."""

    rank: int = 0
    world: int = 1
    wait: Callable[[], None] = _nobody

    @property
    def is_main(self) -> bool:
        """Whether this is the process that makes the folder, writes the results and speaks."""
        return self.rank == 0


def launched() -> int:
    """How many processes the launcher started; 1 where none did. They need not know of each other yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str) -> Processes:
    """The processes that a launcher started; one where none did. Processes on a CPU talk over gloo."""
    if launched() < 2:
        return Processes()
    from accelerate import PartialState  # takes a second to import, and one process does not need it

    state = PartialState(cpu=not device.startswith("cuda"))
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)


def own_device(device: str) -> str:
    """``"cuda"`` as the card that belongs to this process; any other device as it is.

    Raises:
        ValueError: If the machine does not have the device.
    """
    kind, _, index = device.partition(":")
    if index and not index.isdecimal():
        raise UserError(f"device must be cpu, cuda, cuda:N or mps, got {device!r}. Leave it out for cpu.")
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"device must be cpu, cuda, cuda:N or mps, got {device!r}. Leave it out for cpu.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device must be one that this machine has, got {device!r}. Leave it out for cpu.")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device must be one that this machine has, got {device!r}. Leave it out for cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device must be one that this machine has, got {device!r}. Leave it out for cpu.")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def matmul_speed(device: torch.device | str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product, best of three: for estimates of what a run will take."""
    n = 1024  # large enough to be bound by arithmetic, small enough for 50 ms on a slow core
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = float("inf")
    with fast_bfloat16():  # as the model runs
        for _ in range(3):
            start = time.perf_counter()
            float(F.linear(a, a)[0, 0])  # reading a value waits for the device
            best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
