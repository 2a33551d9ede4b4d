"""Every layer of one side against every layer of the other: overlap, mutual kNN and unbiased CKA.

The neighbour lists come from the files of ``layer_jobs``; nothing is searched again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from probes.geometry.compare import MeasurePlan, halves
from probes.geometry.search import Members
from probes.geometry.similarity import cka_of, hsic_of
from probes.geometry.sweep.kernels import Compact
from records.resampling import draw_permutations

Array = npt.NDArray[np.float64]
MAP_MEASURES = ("overlap", "mutual_knn", "cka_unbiased")


@dataclass(frozen=True, eq=False)
class LayerMap:
    """Measures by layer of a and layer of b."""

    layers_a: Sequence[int]
    layers_b: Sequence[int]
    values: dict[str, Float[Array, "layer_a layer_b"]]
    draws: Float[Array, "draw layer_a layer_b"]
    """The overlap on halves of the points."""
    shuffles: Float[Array, "shuffle layer_a layer_b"]
    """The overlap of shuffled pairs."""


def compare_layers(
    near: tuple[Mapping[int, Tensor], Mapping[int, Tensor]],
    aligned: tuple[Mapping[int, Tensor], Mapping[int, Tensor]],
    kernel: Callable[[str, int], Compact],
    plan: MeasurePlan,
    on_step: Callable[[], None],
) -> LayerMap:
    """The map of two sides.

    Args:
        near: For both sides, the neighbours by distance of every layer, ``point k``.
        aligned: The same by cosine.
        kernel: The kernel of a side (``a`` or ``b``) at a layer.
        plan: The numbers of neighbours and draws.
        on_step: Called after each layer of a, each half of the points and each shuffle.
    """
    layers_a, layers_b = sorted(near[0]), sorted(near[1])
    n = len(near[0][layers_a[0]])
    lists_b = torch.cat([near[1][layer][:, : plan.k].long() for layer in layers_b], 1)
    aligned_b = torch.cat([aligned[1][layer][:, : plan.mutual_k].long() for layer in layers_b], 1)
    kernels_b = [kernel("b", layer) for layer in layers_b]
    shape = len(layers_a), len(layers_b)
    # results lie in arrays that are made at once: small ones between large tensors would keep the space of these
    values = {name: np.empty(shape) for name in MAP_MEASURES}
    draws, shuffles = (np.empty((number, *shape)) for number in (plan.draws, plan.shuffles))
    masks = torch.empty(len(layers_a), n, n + 1, dtype=torch.bool)
    for row, layer in enumerate(layers_a):
        masks[row] = _mask(near[0][layer][:, : plan.k].long(), n)
        values["overlap"][row] = _shares(masks[row], lists_b, plan.k)
        beside = _mask(aligned[0][layer][:, : plan.mutual_k].long(), n)
        values["mutual_knn"][row] = _shares(beside, aligned_b, plan.mutual_k)
        for column, other in enumerate(kernels_b):
            values["cka_unbiased"][row, column] = _cka(kernel("a", layer), other)
        on_step()
    for draw, members in enumerate(halves(n, plan, torch.device("cpu"))):
        lists = torch.cat([_first(near[1][layer], members, plan.half_k) for layer in layers_b], 1)
        for row, layer in enumerate(layers_a):
            mask = _mask(_first(near[0][layer], members, plan.half_k), n)
            draws[draw, row] = _shares(mask, lists, plan.half_k)
        on_step()
    orders = torch.from_numpy(
        draw_permutations(np.arange(n), draws=plan.shuffles, generator=np.random.default_rng(plan.seed + 1))
    )
    for shuffle, order in enumerate(orders):
        back = torch.empty_like(order)
        back[order] = torch.arange(n)
        lists = back[lists_b[order]]
        for row, mask in enumerate(masks):
            shuffles[shuffle, row] = _shares(mask, lists, plan.k)
        on_step()
    return LayerMap(layers_a, layers_b, values, draws, shuffles)


def _mask(lists: Int64[Tensor, "row k"], n: int) -> Tensor:
    """True at the neighbours of each row; column n takes the places of neighbours that a list lacks."""
    mask = torch.zeros(len(lists), n + 1, dtype=torch.bool).scatter_(1, lists, value=True)
    mask[:, n] = False
    return mask


def _shares(mask: Tensor, lists: Int64[Tensor, "row listed"], k: int) -> Array:
    """The mean share of neighbours in the mask, for every ``k`` columns of the lists."""
    hits = mask.gather(1, lists).view(torch.uint8).numpy()  # NumPy adds small numbers in half of torch's time
    found = np.add.reduce(hits, 0, dtype=np.int32).reshape(-1, k).sum(1)
    return np.asarray(found / (len(lists) * k), dtype=np.float64)


def _first(lists: Int32[Tensor, "point listed"], members: Members, k: int) -> Int64[Tensor, "row k"]:
    """The first ``k`` members of every member's list; n, which is no point, where a list holds fewer."""
    own = lists[members.rows].long()
    left = members.inside[own]
    order = left.cumsum(1)
    left &= order <= k
    found = torch.full((len(own), k), len(lists), dtype=torch.int64)
    row, column = left.nonzero(as_tuple=True)
    found[row, order[row, column] - 1] = own[row, column]
    return found


def _cka(a: Compact, b: Compact) -> float:
    both = hsic_of(a.kernel, b.kernel, 2 * float(a.above @ b.above))
    return cka_of(both, a.own, b.own).unbiased
