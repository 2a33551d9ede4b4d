"""The effect of a ``Write`` on an activation; both engines use it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.engines.edits import OTHER, Cell, Cut, Edit, Write
from models.llava import Llava

# In the order in which a block of the language model computes them.
SUBLAYER = ("q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out")


def written(
    current: Float[Tensor, "row token *axes"],
    mask: Bool[Tensor, "row token"],
    value: Tensor,
    *,
    heads: tuple[int, ...] | None,
    add: bool,
) -> Float[Tensor, "row token *axes"]:
    """A copy of ``current`` with ``value`` written (or added) where ``mask`` is True; ``value`` broadcasts to it.

    ``heads`` are indices along the axis before the last; None for all.
    """
    where = mask.reshape(*mask.shape, *[1] * (current.dim() - 2))
    if heads is not None:
        chosen = torch.zeros(current.shape[-2], 1, dtype=torch.bool, device=current.device)
        chosen[list(heads)] = True
        where = where & chosen
    value = value.to(current.device, current.dtype)
    return torch.where(where, current + value if add else value, current)


def value_rows(
    value: Tensor, axes: Sequence[int], row: Int[Tensor, " n"], token: Int[Tensor, " n"]
) -> Float[Tensor, " n *axes"]:
    """The values at flat positions of a tensor that broadcasts to ``row token *axes``."""
    value = value.to(row.device)
    value = value.reshape(*[1] * (len(axes) + 2 - value.dim()), *value.shape)
    rows, tokens = (
        torch.zeros_like(at) if size == 1 else at for at, size in zip((row, token), value.shape, strict=False)
    )
    return value[rows, tokens].expand(len(row), *axes)


def replaces_by_other(write: Write) -> bool:
    """True if the write makes the activation equal to the other run's."""
    return isinstance(write.value, str) and write.value == OTHER and not write.add and write.heads is None


def is_vision(edit: Edit) -> bool:
    """True if the edit is in the vision tower or the projector."""
    return isinstance(edit, Write) and edit.site.part != "language_model"


def boundary_of(write: Write) -> int | None:
    """The block whose input a write to ``resid_pre`` or ``resid_post`` changes; None for other writes."""
    if write.site.layer is None or write.site.name not in ("resid_pre", "resid_post"):
        return None
    return write.site.layer + (write.site.name == "resid_post")


def first_layer(cell: Cell, llava: Llava) -> int:
    """The first block of the language model that a cell can change; ``n_layers`` if it changes none."""
    return min((_layer_of(edit, llava) for edit in cell.edits), default=llava.n_layers)


def _layer_of(edit: Edit, llava: Llava) -> int:
    if not isinstance(edit, Write):
        return edit.layer
    if is_vision(edit):
        return 0
    boundary = boundary_of(edit)
    layer = edit.site.layer if boundary is None else boundary
    return llava.n_layers if layer is None else layer


def cut_has_effect(cut: Cut, real: Bool[Tensor, "example pos"]) -> Bool[Tensor, "example pos"]:
    """The queries that lose an edge: queries of the cut with at least one of its keys at an earlier position."""
    keys = (cut.keys & real).int()
    return cut.queries & real & (keys.cumsum(1) - keys > 0)
