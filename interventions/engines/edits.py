"""What a run is made to do differently, as tensors: the language between operations and engines.

Every operation compiles to three kinds of edit. ``Write`` puts values at a site, ``Cut`` removes attention edges,
``Hold`` leaves the residual stream of some positions as it was before a block. A ``Cell`` is the set of edits of one
intervention on one batch; an engine runs many cells and knows nothing of what they mean.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from models.sites import Site

# The value that the other run has at the same site and position.
OTHER: Literal["other"] = "other"


@dataclass(frozen=True, eq=False)
class Write:
    """Puts values at a site.

    Args:
        site: Any site but ``pattern``.
        mask: Where. In the language model the columns of the batch, ``example pos``; in the vision tower and the
            projector the tokens of each row of ``Inputs.pixel_values``, ``image token`` (the class token counts in the
            tower, as in ``capture``, and is not there in the projector).
        value: ``OTHER`` for the other run's value, or a tensor that broadcasts to the site's activation in this batch:
            ``example pos d_model`` (q, k, v, z: ``example pos head d_head``).
        heads: Which heads, for q, k, v and z (key and value heads of their own under grouped queries); None for all.
        add: Add the value instead of replacing what is there.
    """

    site: Site
    mask: Bool[Tensor, "row token"]
    value: Tensor | Literal["other"]
    heads: tuple[int, ...] | None = None
    add: bool = False


@dataclass(frozen=True, eq=False)
class Cut:
    """Removes attention edges of one block of the language model; a position always keeps the edge to itself.

    Args:
        layer: The block, counted from 0.
        queries: Which positions stop looking, ``example pos``.
        keys: At which positions, ``example pos``.
        heads: In which query heads; None for all.
    """

    layer: int
    queries: Bool[Tensor, "example pos"]
    keys: Bool[Tensor, "example pos"]
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Hold:
    """Leaves the residual stream of some positions as it entered a block of the language model.

    The positions still serve as keys and values there.

    Args:
        layer: The block, counted from 0.
        mask: Which positions, ``example pos``.
    """

    layer: int
    mask: Bool[Tensor, "example pos"]


Edit = Write | Cut | Hold


@dataclass(frozen=True, eq=False)
class Cell:
    """The edits of one intervention on one batch; none of them leaves the run as it is."""

    edits: tuple[Edit, ...]
