"""The kernels of all layers of both sides, which the map of layers compares pair by pair.

    kernels = Kernels(2500, 66, "cpu")          # examples, layers of both sides
    kernels.put("a 12", searched.kernel)
    kernels["a 12"].above @ kernels["b 3"].above

Two layers need all of their entries at once, so that all kernels are in memory together: n (n - 1) / 2 numbers each.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from probes.geometry.similarity import Hsic, Kernel, hsic

_ALIGNED = 16  # numbers: a sum of products depends, in its last digits, on where the 64 bytes of a cache line begin


def size_of(n: int) -> int:
    """Bytes of the kernel of ``n`` points in the block."""
    return 4 * _row(n)


def _row(n: int) -> int:
    return -(-(n * (n - 1) // 2) // _ALIGNED) * _ALIGNED


class Compact(NamedTuple):
    """A kernel without the half that is its mirror image."""

    above: Float32[Tensor, " entry"]
    """The entries above the diagonal, row by row."""
    kernel: Kernel
    """With an empty ``off``."""
    own: Hsic


class Kernels:
    """The kernels of layers by name, such as ``a 12``.

    All that is kept lies in three blocks that are allocated once; the system counts their pages when they are written.
    Small tensors that stay between large ones that go would keep the C library from using the space of these again
    (``docs/LOG.md``).

    Args:
        n: Number of points.
        n_layers: Largest number of kernels.
        device: Of the kernels.
    """

    def __init__(self, n: int, n_layers: int, device: str) -> None:
        self._entries = n * (n - 1) // 2
        self._block = torch.empty(n_layers, _row(n), dtype=torch.float32, device=device)
        self._diagonals, self._sums = (torch.empty(n_layers, n, dtype=torch.float64, device=device) for _ in range(2))
        self._found: dict[str, Compact] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the kernel is here."""
        return name in self._found

    def __getitem__(self, name: str) -> Compact:
        """The kernel; ``KeyError`` without it."""
        return self._found[name]

    def put(self, name: str, kernel: Kernel) -> None:
        """Copy a kernel, unless one of this name is here: two layers of a may be compared with one of b."""
        if name in self._found:
            return
        number = len(self._found)
        n = len(kernel.off)
        rows, columns = torch.triu_indices(n, n, offset=1, device=kernel.off.device)
        above = self._block[number, : self._entries].copy_(kernel.off[rows, columns])
        diagonal, sums = self._diagonals[number].copy_(kernel.diagonal), self._sums[number].copy_(kernel.sums)
        empty = self._block[:0, :0]  # a slice of ``off`` would keep the memory of all of it
        self._found[name] = Compact(above, Kernel(empty, diagonal, sums), hsic(kernel, kernel))
