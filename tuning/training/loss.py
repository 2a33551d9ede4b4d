"""The training loss. The language-model head runs only at positions whose next token is labelled.

These are a few per cent of a conversation. With a vocabulary of 49,152 and width 576, the head at all other positions
would take a fifth of a forward pass and hundreds of megabytes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F

from models.llava import Llava
from models.token_plans.forward import PlannedBatch, planned
from models.token_plans.plan import parse_token_plan
from tuning.data.labels import IGNORED


def loss_positions(labels: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Positions whose next token is labelled."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


@contextmanager
def head_at(llava: Llava, positions: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Context manager: the model returns logits at ``positions`` only, row by row: shape ``1 position vocab``."""

    def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][positions.to(args[0].device)][None],)

    handle = llava.model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def head_at_labels(llava: Llava, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Context manager: the head runs at labelled positions only; yields model arguments that give the same loss."""
    positions = loss_positions(inputs["labels"])
    with head_at(llava, positions):
        yield {**inputs, "shift_labels": inputs["labels"].roll(-1, 1)[positions][None]}


@contextmanager
def under_token_plan(llava: Llava, token_plan: str, batch: Mapping[str, Any]) -> Iterator[None]:
    """Context manager: the language model runs ``batch`` under a token plan.

    ``batch`` has ``input_ids`` and ``labels``, and maybe ``sample``, by which tokens are chosen at random. The prompt
    of a row ends before its first label.
    """
    if token_plan == "all":
        yield
        return
    ids = batch["input_ids"].to(llava.device)
    labelled = loss_positions(batch["labels"]).to(llava.device)
    last = torch.where(labelled.any(1), labelled.int().argmax(1), ids.shape[1] - 1)
    names = tuple(map(str, batch["sample"].tolist())) if "sample" in batch else tuple(map(str, range(len(ids))))
    planned_batch = PlannedBatch(ids == llava.image_token_id, last, names)
    with planned(llava, parse_token_plan(token_plan, llava.n_layers), planned_batch):
        yield


def loss_of(llava: Llava, inputs: Mapping[str, Any], *, token_plan: str = "all") -> Tensor:
    """The mean loss over labelled tokens."""
    with head_at_labels(llava, inputs) as given, under_token_plan(llava, token_plan, inputs):
        loss: Tensor = llava.model(**given).loss
    return loss
