"""Edits to a forward pass, as tensors: the interface between operations and engines.

Every operation consists of three kinds of edit. ``Write`` puts values at a site, ``Cut`` removes attention edges,
``Hold`` keeps the residual stream of some positions as it enters a block. A ``Cell`` holds the edits of one
intervention on one batch. Operations make cells; engines run them.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from models.sites import Site

# The other run's value at the same site and position.
OTHER: Literal["other"] = "other"
HEAD_SITES = ("q", "k", "v", "z")  # names of the sites that have an axis for the heads


@dataclass(frozen=True, eq=False)
class Write:
    """Values that are written at a site.

    Args:
        site: Any site but ``pattern``.
        mask: Where. In the language model the columns of the batch, ``example pos``; in the vision tower and the
            projector the tokens of each row of ``Inputs.pixel_values``, ``image token`` (with the class token in the
            tower, without it in the projector, as in ``capture``).
        value: ``OTHER`` for the other run's value, or a tensor that broadcasts to the site's activation in this batch:
            ``example pos d_model`` (q, k, v, z: ``example pos head d_head``).
        heads: Which heads, for q, k, v and z (key and value heads for k and v); None for all.
        add: Add the value instead of replacing what is there.

    Example:
        >>> import torch
        >>> Write(Site.parse("blocks.1.hook_resid_pre"), torch.tensor([[False, True, True]]), OTHER).site.layer
        1
    """

    site: Site
    mask: Bool[Tensor, "row token"]
    value: Tensor | Literal["other"]
    heads: tuple[int, ...] | None = None
    add: bool = False


@dataclass(frozen=True, eq=False)
class Cut:
    """Attention edges that are removed in one block of the language model; the edge from a position to itself stays.

    Args:
        layer: The block, counted from 0.
        queries: Positions that no longer attend, ``example pos``.
        keys: Positions that they no longer attend to, ``example pos``.
        heads: In which query heads; None for all.

    Example:
        >>> import torch
        >>> Cut(1, queries=torch.tensor([[False, False, True]]), keys=torch.tensor([[True, False, False]])).layer
        1
    """

    layer: int
    queries: Bool[Tensor, "example pos"]
    keys: Bool[Tensor, "example pos"]
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Hold:
    """Positions whose residual stream passes a block unchanged; they still serve as keys and values there.

    Args:
        layer: The block of the language model, counted from 0.
        mask: Which positions, ``example pos``.

    Example:
        >>> import torch
        >>> Hold(1, torch.tensor([[False, True, True]])).layer
        1
    """

    layer: int
    mask: Bool[Tensor, "example pos"]


Edit = Write | Cut | Hold


@dataclass(frozen=True, eq=False)
class Cell:
    """The edits of one intervention on one batch; without edits it is the unchanged run.

    Example:
        >>> import torch
        >>> image = torch.tensor([[False, True, True]])
        >>> skip = Cell(tuple(Hold(layer, image) for layer in (1, 2)))  # image tokens skip two layers
        >>> len(skip.edits)
        2
    """

    edits: tuple[Edit, ...]
