"""Check cells before any forward."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interventions.engines.base_runs import Base
from interventions.engines.edits import HEAD_SITES, Cell, Cut, Write
from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site, check_site
from tasks.errors import UserError


def check_cells(llava: Llava, base: Base, cells: Sequence[Cell]) -> None:
    """Raise ``UserError`` unless every edit of every cell fits the model and the base.

    The model must have each site, layer and head. A mask must have the batch's shape and select at least one position
    and no padding. A value must broadcast; for ``OTHER`` there must be another run with the same positions there.
    """
    for cell in cells:
        for edit in cell.edits:
            if isinstance(edit, Write):
                _check_write(llava, base, edit)
            else:
                _check_layer(llava, edit.layer, type(edit).__name__)
                masks = (edit.queries, edit.keys) if isinstance(edit, Cut) else (edit.mask,)
                for mask in masks:
                    _check_mask(mask, base.inputs.input_ids.shape, f"mask of a {type(edit).__name__}")
                if isinstance(edit, Cut) and edit.heads is not None:
                    _check_heads(edit.heads, llava.n_heads, f"a Cut in block {edit.layer}")


def _check_layer(llava: Llava, layer: int, what: str) -> None:
    if not 0 <= layer < llava.n_layers:
        raise UserError(
            f"layer of a {what} must be in [0, {llava.n_layers}) for {llava.id}, got {layer}. Layers count from 0."
        )


def _check_mask(mask: Tensor, shape: Sequence[int], what: str) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) != tuple(shape):
        raise UserError(
            f"{what} must be boolean of shape {tuple(shape)}, got {mask.dtype} of {tuple(mask.shape)}. "
            "token_mask makes one for the language model."
        )


def _check_heads(heads: Sequence[int], n_heads: int, what: str) -> None:
    if not heads or not all(0 <= head < n_heads for head in heads):
        raise UserError(
            f"heads must be in [0, {n_heads}) and not empty for {what}, got {tuple(heads)}. None means all heads."
        )


def _check_write(llava: Llava, base: Base, write: Write) -> None:
    site = write.site
    check_site(site, llava)
    if site.name == "pattern":
        raise UserError(f"site of a Write must not be a pattern, got {str(site)!r}. A Cut removes attention edges.")
    shape = site_shape(llava, base.inputs, site)
    _check_mask(write.mask, shape[:2], f"mask at {str(site)!r}")
    if not bool(write.mask.any()):
        raise UserError(f"mask at {str(site)!r} must contain at least one position, got none.")
    if site.part == "language_model":
        mask = write.mask.to(base.inputs.attention_mask.device)
        if bool((mask & (base.inputs.attention_mask == 0)).any()):
            raise UserError(f"mask at {str(site)!r} must not contain padding, got some. Combine with attention_mask.")
    if write.heads is not None:
        if site.name not in HEAD_SITES:
            raise UserError(f"heads must be None at {str(site)!r}, got {write.heads}. Only q, k, v and z have heads.")
        _check_heads(write.heads, shape[2], f"{str(site)!r}")
    if isinstance(write.value, str):
        _check_other(base, write)
    elif not _broadcasts(write.value, shape):
        raise UserError(
            f"value at {str(site)!r} must broadcast to {shape}, got {tuple(write.value.shape)}. "
            "q, k, v and z have an axis for the heads."
        )


def _broadcasts(value: Tensor, shape: tuple[int, ...]) -> bool:
    sizes = list(value.shape)
    return len(sizes) <= len(shape) and all(
        mine in (1, wanted) for mine, wanted in zip(reversed(sizes), reversed(shape), strict=False)
    )


def site_shape(llava: Llava, inputs: Inputs, site: Site) -> tuple[int, ...]:
    """Shape of the activation at a site: ``row token d_model``, or ``row token head d_head`` for q, k, v and z."""
    if site.part == "language_model":
        rows, tokens, width, n_heads = *inputs.input_ids.shape, llava.d_model, llava.n_heads
        n_kv_heads, d_head = llava.n_kv_heads, llava.tap(Site("language_model", 0, "q")).d_head
    else:
        if inputs.pixel_values is None:
            raise UserError(f"batch must have pictures for a Write at {str(site)!r}, got none.")
        tower = site.part == "vision_tower"
        height, wide = llava.grid
        rows = inputs.pixel_values.shape[0]
        tokens = height * wide + (1 if tower else llava.n_class_tokens)
        n_heads = n_kv_heads = llava.n_vision_heads
        d_head = llava.tap(Site("vision_tower", 0, "q")).d_head
        assert d_head is not None
        width = n_heads * d_head if tower or site.name == "in" else llava.d_model
    if site.name in HEAD_SITES:
        assert d_head is not None
        return rows, tokens, n_kv_heads if site.name in ("k", "v") else n_heads, d_head
    return rows, tokens, width


def _check_other(base: Base, write: Write) -> None:
    """Check that the other run has values at the positions of the write."""
    site, other, inputs = write.site, base.other, base.inputs
    if write.value != "other":
        raise UserError(f"value at {str(site)!r} must be OTHER or a tensor, got {write.value!r}.")
    if other is None:
        raise UserError(f"other must be given for a Write of OTHER at {str(site)!r}, got None. Pass the other batch.")
    if site.part != "language_model":
        for example, (mine, theirs) in enumerate(zip(inputs.image_of, other.image_of, strict=True)):
            if len(mine) != len(theirs) and any(bool(write.mask[picture].any()) for picture in mine):
                raise UserError(
                    f"other must have as many pictures as the batch in row {example}, got {len(theirs)} for "
                    f"{len(mine)}, with a Write at {str(site)!r}. Pictures are paired by order."
                )
        return
    rows, columns = write.mask.to(inputs.input_ids.device).nonzero(as_tuple=True)
    ok = columns < other.n_positions
    inside = columns.clamp(max=other.n_positions - 1)
    ok &= other.attention_mask[rows, inside].bool()
    ok &= other.position_ids[rows, inside] == inputs.position_ids[rows, columns]
    if not bool(ok.all()):
        row, column = int(rows[~ok][0]), int(columns[~ok][0])
        raise UserError(
            f"other must have the same position at column {column} of row {row}, where {str(site)!r} is written from "
            "it, got padding or another one. Prepare both batches with prompts of equal length, padded on the right."
        )
