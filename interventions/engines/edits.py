"""Edits to a forward pass, as tensors: the interface between operations and engines.

There are three kinds of edit: ``Write`` puts values at a site, ``Cut`` removes attention edges, ``Hold`` makes some
positions skip a block. A ``Cell`` holds the edits of one intervention on one batch. Operations make cells; engines run
them.
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
        mask: The positions: columns of the batch (language model), or the tokens of each row of ``Inputs.pixel_values``
            (including the class token in the vision tower, but not in the projector).
        value: ``OTHER`` for the other run's value, or a tensor that broadcasts to the site's activation in this batch:
            ``example pos d_model`` (q, k, v, z: ``example pos head d_head``).
        heads: Heads of q, k, v or z (for k and v, key and value heads); None for all.
        add: Add the value to the activation instead of replacing it.
    """

    site: Site
    mask: Bool[Tensor, "row token"]
    value: Tensor | Literal["other"]
    heads: tuple[int, ...] | None = None
    add: bool = False


@dataclass(frozen=True, eq=False)
class Cut:
    """Attention edges that are removed in one block of the language model; the edge from a position to itself stays.

    Positions in ``queries`` do not attend to positions in ``keys``, in the given query heads (None: all).
    """

    layer: int
    queries: Bool[Tensor, "example pos"]
    keys: Bool[Tensor, "example pos"]
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Hold:
    """Positions whose residual stream passes a block unchanged; other positions still attend to them in this block."""

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
