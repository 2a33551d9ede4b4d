"""A device that a step does not fit in: ``enough_memory`` says so in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.errors import UserError


@contextmanager
def enough_memory(rows: int) -> Iterator[None]:
    """A device whose memory a step of ``rows`` samples does not fit in becomes a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"device must hold a step of {rows} samples, got {' '.join(str(error).split())} Lower --batch-size and "
            "raise --grad-accum, or give --bf16, --gradient-checkpointing, or fewer --layers."
        ) from error
