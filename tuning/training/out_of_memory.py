"""Re-raise CUDA out-of-memory errors as ``UserError`` with advice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tasks.errors import UserError


@contextmanager
def advise_when_out_of_memory(rows: int) -> Iterator[None]:
    """Re-raise an out-of-memory error of a step on ``rows`` samples as ``UserError``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"device must have room for a step of {rows} samples, got {' '.join(str(error).split())} Lower "
            "--batch-size and raise --grad-accum, or give --dtype bfloat16, --gradient-checkpointing or fewer --layers."
        ) from error
