"""The k nearest neighbours of every point, exact and in batches, and the checks that every measure makes first.

    found = nearest(points, k=30)
    found.distances, found.indices        # point k, nearest first

Inner products are summed in float64, so that the distances of float32 points are right to float32 also where points
share a mean that is much longer than their differences, as activations do.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from tasks.errors import UserError

Points = npt.ArrayLike | Tensor
Metric = Literal["euclidean", "cosine"]
_BLOCK = 2**24  # distances held at a time


class Neighbours(NamedTuple):
    """The nearest neighbours of every point; a point is no neighbour of itself."""

    distances: Float32[Tensor, "point k"]
    """In ascending order: Euclidean, or 1 - cosine."""
    indices: Int64[Tensor, "point k"]
    """The rows of the neighbours. Of equally distant ones any order is possible."""


def as_points(points: Points, name: str = "points", *, least: int = 3) -> Float32[Tensor, "point d_model"]:
    """The points as float32, checked; a tensor stays on its device.

    Args:
        points: ``point d_model``.
        name: Of the argument, for messages.
        least: Smallest number of different points.

    Raises:
        UserError: If this is no matrix, a value is not finite, or there are fewer than ``least`` different points.
    """
    found = points if isinstance(points, Tensor) else torch.from_numpy(np.array(points, dtype=np.float32))
    if found.ndim != 2 or not found.shape[1]:
        raise UserError(f"{name} must be a matrix of points and dimensions, got shape {tuple(found.shape)}.")
    found = found.detach().to(torch.float32)
    bad = (~torch.isfinite(found)).any(1).nonzero()
    if len(bad):
        raise UserError(f"{name} must be finite, got NaN or infinity in row {int(bad[0])}. Check the activations.")
    if len(found) < least:
        raise UserError(f"{name} must be at least {least} points, got {len(found)}. Use more examples or a smaller k.")
    return found


def first_of_equals(*representations: Float32[Tensor, "point _"]) -> Bool[Tensor, " point"]:
    """True for the rows that equal no earlier row in any of the representations.

    Example:
        >>> first_of_equals(torch.tensor([[1.0], [2.0], [1.0]]), torch.tensor([[1.0], [1.0], [3.0]])).tolist()
        [True, False, False]
    """
    kept = torch.ones(len(representations[0]), dtype=torch.bool)
    for points in representations:
        rows = np.ascontiguousarray((points + 0.0).cpu().numpy())  # -0 equals 0
        _, first = np.unique(rows.view(np.dtype((np.void, rows.strides[0])))[:, 0], return_index=True)
        here = torch.zeros(len(rows), dtype=torch.bool)
        here[torch.from_numpy(first)] = True
        kept &= here
    return kept.to(representations[0].device)


class Unique(NamedTuple):
    """Paired points without duplicates."""

    points: tuple[Float32[Tensor, "point _"], ...]
    kept: Bool[Tensor, " row"]
    """True for the rows that are left."""
    n_duplicates: int
    """Rows that were left out."""


def unique_points(*representations: Points, names: Sequence[str] = ("a", "b"), least: int = 3) -> Unique:
    """The representations without rows that repeat an earlier row in one of them.

    Neighbour measures need different points: a duplicate is a neighbour at distance 0, and a ratio of distances is then
    undefined.

    Args:
        representations: ``point d_model`` each, with the same points in the same order.
        names: Of the arguments, for messages.
        least: Smallest number of rows that must be left.

    Raises:
        UserError: As ``as_points``, if the numbers of points differ, or fewer than ``least`` rows are left.

    Example:
        >>> unique_points([[1.0], [2.0], [1.0], [4.0]], names=("a",)).n_duplicates
        1
    """
    found = [as_points(points, name, least=least) for points, name in zip(representations, names, strict=False)]
    sizes = {len(points) for points in found}
    if len(sizes) > 1:
        numbers = " and ".join(str(len(points)) for points in found)
        raise UserError(f"{' and '.join(names[: len(found)])} must hold the same points, got {numbers} rows.")
    kept = first_of_equals(*found)
    left = int(kept.sum())
    if left < least:
        raise UserError(
            f"{' and '.join(names[: len(found)])} must be at least {least} different points, got {left} without "
            f"duplicates of {len(kept)}. Use more examples or a smaller k, or leave out sites with constant rows."
        )
    return Unique(tuple(points[kept] for points in found), kept, len(kept) - left)


def nearest(points: Points, *, k: int, metric: Metric = "euclidean") -> Neighbours:
    """The ``k`` nearest neighbours of every point, by exact search on the device of ``points``.

    Args:
        points: ``point d_model``; more than ``k`` points.
        k: Number of neighbours.
        metric: ``euclidean``, or ``cosine`` for the largest cosines.

    Raises:
        UserError: As ``as_points``.

    Example:
        >>> found = nearest([[0.0], [1.0], [3.0]], k=1)
        >>> found.indices[:, 0].tolist(), found.distances[:, 0].tolist()
        ([1, 0, 1], [1.0, 1.0, 2.0])
    """
    checked = as_points(points, least=k + 1)
    parts = [smallest(rows, k) for _, rows in squared_distances(checked, metric)]
    distances, indices = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Neighbours(distances.sqrt() if metric == "euclidean" else distances, indices)


def smallest(
    distances: Float32[Tensor, "row point"], k: int
) -> tuple[Float32[Tensor, "row k"], Int64[Tensor, "row k"]]:
    """The ``k`` smallest values of every row in ascending order, and their columns."""
    found = distances.topk(k, dim=1, largest=False, sorted=True)
    return found.values, found.indices


def squared_distances(
    points: Float32[Tensor, "point d_model"], metric: Metric = "euclidean"
) -> Iterator[tuple[slice, Float32[Tensor, "row point"]]]:
    """Blocks of rows of the matrix of squared Euclidean distances, or of 1 - cosine; infinite on the diagonal."""
    exact = points.to(torch.float64)
    if metric == "cosine":
        exact = exact / exact.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    squares = (exact**2).sum(1)
    step = max(1, _BLOCK // len(points))
    for start in range(0, len(points), step):
        rows = slice(start, min(start + step, len(points)))
        products = inner_products(exact) if step >= len(points) else exact[rows] @ exact.T
        yield rows, from_products(products, squares[rows], squares, rows.start, metric)


def inner_products(points: Float64[Tensor, "point d_model"]) -> Float64[Tensor, "point point"]:
    """The inner products of all pairs of points.

    On a CPU NumPy computes one half and mirrors it, in half of the time of torch, which computes both. Its threads are
    those of OMP_NUM_THREADS.
    """
    if points.device.type != "cpu":
        return points @ points.T
    values = points.numpy()
    return torch.from_numpy(values @ values.T)


def from_products(
    products: Float[Tensor, "row point"], own: Float[Tensor, " row"], squares: Float[Tensor, " point"], first: int,
    metric: Metric,
) -> Float32[Tensor, "row point"]:  # fmt: skip
    """Squared distances, or 1 - cosine, from inner products in float64; row 0 is the point ``first``."""
    found = 1 - products if metric == "cosine" else own[:, None] + squares - 2 * products
    found = found.clamp_(min=0).to(torch.float32)
    rows = torch.arange(len(found), device=found.device)
    found[rows, rows + first] = torch.inf
    return found
