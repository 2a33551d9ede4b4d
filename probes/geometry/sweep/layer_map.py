"""Every layer of one side against every layer of the other: overlap, mutual kNN and unbiased CKA.

The neighbour lists come from the files of ``layer_jobs``; nothing is searched again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from probes.geometry.compare import MeasurePlan, halves
from probes.geometry.similarity import cka_of, hsic_of
from probes.geometry.sweep.layer_jobs import Compact
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
    on_layer: Callable[[], None],
) -> LayerMap:
    """The map of two sides.

    Args:
        near: For both sides, the neighbours by distance of every layer, ``point k``.
        aligned: The same by cosine.
        kernel: The kernel of a side (``a`` or ``b``) at a layer.
        plan: The numbers of neighbours and draws.
        on_layer: Called after each layer of a.
    """
    layers_a, layers_b = sorted(near[0]), sorted(near[1])
    n = len(near[0][layers_a[0]])
    members = [(part.rows.cpu(), part.inside.cpu()) for part in halves(n, plan, torch.device("cpu"))]
    orders = torch.from_numpy(
        draw_permutations(np.arange(n), draws=plan.shuffles, generator=np.random.default_rng(plan.seed + 1))
    )
    lists_b = torch.cat([near[1][layer][:, : plan.k] for layer in layers_b], 1)
    halved_b = [
        torch.cat([_first(near[1][layer][own], inside, plan.k) for layer in layers_b], 1) for own, inside in members
    ]
    aligned_b = torch.cat([aligned[1][layer][:, : plan.mutual_k] for layer in layers_b], 1)
    kernels_b = [kernel("b", layer) for layer in layers_b]
    found: dict[str, list[Array]] = {name: [] for name in (*MAP_MEASURES, "draws")}
    for layer in layers_a:
        mask = _mask(near[0][layer][:, : plan.k], n)
        found["overlap"].append(_shares(mask, lists_b, plan.k))
        found["mutual_knn"].append(_shares(_mask(aligned[0][layer][:, : plan.mutual_k], n), aligned_b, plan.mutual_k))
        halved = []
        for (own, inside), lists in zip(members, halved_b, strict=True):
            part = _mask(_first(near[0][layer][own], inside, plan.k), n)
            halved.append(_shares(part, lists, plan.k))
        found["draws"].append(np.array(halved))
        found["cka_unbiased"].append(np.array([_cka(kernel("a", layer), other) for other in kernels_b]))
        on_layer()
    masks = [_mask(near[0][layer][:, : plan.k], n) for layer in layers_a]
    shuffles = []
    for order in orders:
        back = torch.empty_like(order)
        back[order] = torch.arange(n)
        lists = back[lists_b[order]]
        shuffles.append([_shares(mask, lists, plan.k) for mask in masks])
    values = {name: np.array(found[name]) for name in MAP_MEASURES}
    return LayerMap(layers_a, layers_b, values, np.stack(found["draws"], 1), np.array(shuffles))


def _mask(lists: Int64[Tensor, "row k"], n: int) -> Tensor:
    """True at the neighbours of each row; column n takes the places of neighbours that a list lacks."""
    mask = torch.zeros(len(lists), n + 1, dtype=torch.bool).scatter_(1, lists, value=True)
    mask[:, n] = False
    return mask


def _shares(mask: Tensor, lists: Int64[Tensor, "row listed"], k: int) -> Array:
    """The mean share of neighbours in the mask, for every ``k`` columns of the lists."""
    share = mask.gather(1, lists).view(len(lists), -1, k).double().mean((0, 2))
    return np.asarray(share, dtype=np.float64)


def _first(lists: Int64[Tensor, "row listed"], inside: Tensor, k: int) -> Int64[Tensor, "row k"]:
    """The first ``k`` members of every list; n, which is no point, where a list holds fewer."""
    left = inside[lists]
    order = left.cumsum(1)
    left &= order <= k
    found = torch.full((len(lists), k), len(inside), dtype=torch.int64)
    row, column = left.nonzero(as_tuple=True)
    found[row, order[row, column] - 1] = lists[row, column]
    return found


def _cka(a: Compact, b: Compact) -> float:
    both = hsic_of(a.kernel, b.kernel, 2 * float(a.above @ b.above))
    return cka_of(both, a.own, b.own).unbiased
