"""The head where something is learned: of a conversation a few positions in a hundred are answers, the rest no loss.

The loss is the mean over learned tokens, so scores of all other positions are never used. With a vocabulary of 49,152
and blocks of width 576 they would be a fifth of a forward pass, and hundreds of megabytes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.llava import Llava
from tuning.data.labels import IGNORED


def learned_positions(labels: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Positions whose next token is learned."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


@contextmanager
def head_at(llava: Llava, positions: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Inside the block the model's logits are ``1 position vocab``, those of ``positions`` alone, row by row."""

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][positions.to(args[0].device)][None],)

    handle = llava.model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def only_learned(llava: Llava, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments to run the model with inside the block, for the loss alone: it is that of all positions.

    Args:
        llava: The model.
        inputs: Its arguments, labels included.
    """
    labels: Tensor = inputs["labels"]
    positions = learned_positions(labels)
    with head_at(llava, positions):
        yield {**inputs, "shift_labels": F.pad(labels[:, 1:], (0, 1), value=IGNORED)[positions][None]}


def loss_of(llava: Llava, inputs: Mapping[str, Any]) -> Tensor:
    """The mean loss over learned tokens."""
    with only_learned(llava, inputs) as given:
        loss: Tensor = llava.model(**given).loss
    return loss
