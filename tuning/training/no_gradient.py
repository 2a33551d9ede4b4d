"""Steps without a gradient: text-only batches when only the projector or the vision tower trains.

Such a step must change no weight, but with several processes it must join the gradient exchange.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tuning.training.sharding import as_number, whole


def with_zero_gradients(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``loss`` plus zero times every trained parameter, so that each receives a gradient of zero."""
    for parameter in parameters:
        if parameter.requires_grad:
            loss = loss + 0.0 * whole(parameter.sum())
    return loss


@contextmanager
def zero_gradients_in_forward(model: nn.Module, parameters: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Context manager: the forward pass adds zero gradients to a loss without gradients, as DDP requires."""

    def add_zero(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not output["loss"].requires_grad and torch.is_grad_enabled():
            output["loss"] = with_zero_gradients(output["loss"], parameters())

    handle = model.register_forward_hook(add_zero)
    try:
        yield
    finally:
        handle.remove()


def drop_zero_gradients(parameters: Iterable[Tensor]) -> None:
    """Set all gradients to None if all are zero; otherwise the optimizer's momentum would still move the weights."""
    planned = list(parameters)
    if not any(as_number(p.grad.norm()) for p in planned if p.grad is not None):
        for parameter in planned:
            parameter.grad = None
