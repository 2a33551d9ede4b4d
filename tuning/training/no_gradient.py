"""Batches that teach nothing that is planned: words alone, where only projector or tower train.

They are a step without a gradient, not an error, and nothing may move in it. What they must still do is take part:
several processes wait for each other's gradients.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tuning.training.sharding import as_number


def add_nothing(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``loss`` with a graph that reaches every parameter that trains, and gives it a gradient of zero."""
    for parameter in parameters:
        if parameter.requires_grad:
            total: Tensor = parameter.sum()
            loss = loss + 0.0 * (total.full_tensor() if isinstance(total, DTensor) else total)
    return loss


@contextmanager
def taking_part(model: nn.Module, parameters: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Inside the block a loss of ``model`` without a gradient gets one of zero, within the model's forward.

    That is where DDP looks for what takes part.
    """

    def reach(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not output["loss"].requires_grad and torch.is_grad_enabled():
            output["loss"] = add_nothing(output["loss"], parameters())

    handle = model.register_forward_hook(reach)
    try:
        yield
    finally:
        handle.remove()


def drop_zeros(parameters: Iterable[Tensor]) -> None:
    """Takes the gradients away if all of them are zero: the optimizer's momentum would move the weights on."""
    planned = list(parameters)
    if not any(as_number(p.grad.norm()) for p in planned if p.grad is not None):
        for parameter in planned:
            parameter.grad = None
