"""Positions of many cells, packed into one row of queries for each example."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Pack(NamedTuple):
    """Packed positions: entry i is position ``pos[i]`` of ``cell[i]`` in ``example[i]``, at ``slot[i]`` of its row.

    ``shape`` is the number of rows and the number of slots per row; short rows end in empty slots.
    """

    example: Int[Tensor, " n"]
    cell: Int[Tensor, " n"]
    pos: Int[Tensor, " n"]
    slot: Int[Tensor, " n"]
    shape: tuple[int, int]

    def spread(self, values: Tensor, filler: int) -> Tensor:
        """``n ...`` -> ``example slot ...``, with ``filler`` in empty slots."""
        packed = torch.full((*self.shape, *values.shape[1:]), filler, dtype=values.dtype, device=values.device)
        packed[self.example, self.slot] = values
        return packed


def pack(mask: Bool[Tensor, "example cell pos"]) -> Pack | None:
    """The positions where the mask is True, packed cell by cell; None if there are none."""
    counts = mask.flatten(1).sum(1)
    width = int(counts.max())
    if width == 0:
        return None
    example, cell, pos = mask.nonzero(as_tuple=True)
    slot = torch.arange(len(example), device=mask.device) - (counts.cumsum(0) - counts)[example]
    return Pack(example, cell, pos, slot, (len(mask), width))
