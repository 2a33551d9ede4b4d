"""One representation after its search: everything that its measures need, computed once.

a, b = (Searched.of(points, k=30, mutual_k=10) for points in (x, y))      # the same points, without duplicates
measure(a, b, MeasurePlan())                                              # probes.geometry.compare
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from probes.geometry.neighbours import Neighbours, from_products, inner_products, smallest
from probes.geometry.similarity import Kernel, select_points

_SPARE = 6  # standard deviations of the number of a list's neighbours that are left in a half of the points


class Members(NamedTuple):
    """Some of the points."""

    rows: Int64[Tensor, " row"]
    """In ascending order."""
    inside: Bool[Tensor, " point"]


@dataclass(frozen=True, eq=False)
class Searched:
    """A representation of n points, its distances and its nearest neighbours, on one device."""

    points: Float32[Tensor, "point d_model"]
    squared: Float32[Tensor, "point point"]
    """Squared Euclidean distances; infinite on the diagonal."""
    turned: Float32[Tensor, "point point"]
    """1 - cosine; infinite on the diagonal."""
    near: Neighbours
    """By Euclidean distance, squared."""
    aligned: Neighbours
    """By cosine."""
    kernel: Kernel

    @classmethod
    def of(cls, points: Float32[Tensor, "point d_model"], *, k: int, mutual_k: int) -> "Searched":
        """Search for at least ``k`` neighbours by distance and ``mutual_k`` by cosine, also in halves of the points."""
        products = inner_products(points.to(torch.float64))
        squares = products.diagonal().clone()
        squared = from_products(products, squares, squares, 0, "euclidean")
        lengths = squares.sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        turned = from_products(products / lengths / lengths[:, None], squares, squares, 0, "cosine")
        parts = Kernel.of(products)
        kernel = Kernel(parts.off.to(torch.float32), parts.diagonal, parts.sums)
        lists = [
            Neighbours(*smallest(distances, min(length_for_halves(number), len(points) - 1)))
            for distances, number in ((squared, k), (turned, mutual_k))
        ]
        return cls(points, squared, turned, lists[0], lists[1], kernel)

    def near_among(self, members: Members, k: int) -> Neighbours:
        """The ``k`` nearest neighbours of every member among the members; indices are those of all points."""
        return _among(self.near, self.squared, members, k)

    def aligned_among(self, members: Members, k: int) -> Neighbours:
        """The same by cosine."""
        return _among(self.aligned, self.turned, members, k)


def length_for_halves(k: int) -> int:
    """The length of a list of which almost surely ``k`` neighbours are in a random half of the points."""
    return int(2 * k + _SPARE * (2 * k) ** 0.5) + 1


def _among(lists: Neighbours, distances: Float32[Tensor, "point point"], members: Members, k: int) -> Neighbours:
    """Select from the lists if they hold enough members for every row; otherwise search again."""
    indices = lists.indices[members.rows]
    left = members.inside[indices]
    left &= left.cumsum(1) <= k
    if bool((left.sum(1) == k).all()):
        columns = left.nonzero()[:, 1].view(-1, k)
        return Neighbours(lists.distances[members.rows].gather(1, columns), indices.gather(1, columns))
    found, columns = smallest(select_points(distances, members.rows), k)
    return Neighbours(found, members.rows[columns])
