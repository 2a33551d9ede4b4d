"""Measures of shared neighbours: overlap with a representation or labels, mutual kNN, information imbalance."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from probes.geometry.neighbours import Points, nearest, squared_distances, unique_points
from tasks.errors import UserError

K = 30
MUTUAL_K = 10


class Overlap(NamedTuple):
    """A share of neighbours."""

    value: float
    chance: float
    """The expected value for neighbours that are drawn at random."""
    n: int
    n_duplicates: int


class Imbalance(NamedTuple):
    """How much of each representation is missing in the other."""

    a_to_b: float
    """0: the nearest neighbours in a are those in b. 1: they say nothing about b."""
    b_to_a: float
    n: int
    n_duplicates: int


def neighbourhood_overlap(a: Points, b: Points, *, k: int = K) -> Overlap:
    """The share of the ``k`` nearest Euclidean neighbours that two representations of the same points share.

    Args:
        a: ``point d_model``.
        b: The same points in another representation; its width may differ.
        k: Number of neighbours, below that of different points.

    Raises:
        UserError: If the points cannot be used, or there are not more than ``k``.

    Source: Doimo, Glielmo, Ansuini & Laio 2020, "Hierarchical nucleation in deep neural networks", arXiv 2007.03506.

    Example:
        >>> import numpy as np
        >>> points = np.random.default_rng(0).normal(size=(100, 4))
        >>> neighbourhood_overlap(points, 2 * points, k=5).value
        1.0
    """
    (x, y), _, n_duplicates = unique_points(a, b, least=_least(k))
    value = shared(nearest(x, k=k).indices, nearest(y, k=k).indices).mean().item()
    return Overlap(value, k / (len(x) - 1), len(x), n_duplicates)


def mutual_knn(a: Points, b: Points, *, k: int = MUTUAL_K) -> Overlap:
    """The share of the ``k`` neighbours of largest cosine that two representations of the same points share.

    Arguments and errors are those of ``neighbourhood_overlap``.

    Source: Huh, Cheung, Wang & Isola 2024, "The Platonic Representation Hypothesis", arXiv 2405.07987.

    Example:
        >>> import numpy as np
        >>> points = np.random.default_rng(0).normal(size=(100, 4))
        >>> mutual_knn(points, points / np.linalg.norm(points, axis=1, keepdims=True)).value
        1.0
    """
    (x, y), _, n_duplicates = unique_points(a, b, least=_least(k))
    indices = (nearest(points, k=k, metric="cosine").indices for points in (x, y))
    return Overlap(shared(*indices).mean().item(), k / (len(x) - 1), len(x), n_duplicates)


def label_overlap(points: Points, labels: npt.ArrayLike, *, k: int = K, weighted: bool = True) -> Overlap:
    """The share of the ``k`` nearest Euclidean neighbours that have a point's own label.

    Args:
        points: ``point d_model``.
        labels: One for each point.
        k: Number of neighbours.
        weighted: Every class counts equally; otherwise every point does.

    Raises:
        UserError: If the points cannot be used, the labels are not one for each point, or there is one class only.

    Source: as ``neighbourhood_overlap``; weights as in DADApy.

    Example:
        >>> import numpy as np
        >>> points = np.repeat([[0.0], [9.0]], 20, axis=0) + np.random.default_rng(0).uniform(size=(40, 1))
        >>> label_overlap(points, np.repeat(["cat", "dog"], 20), k=5).value
        1.0
    """
    given = np.asarray(labels)
    (x,), kept, n_duplicates = unique_points(points, names=("points",), least=_least(k))
    if given.shape != (len(x) + n_duplicates,):
        raise UserError(f"labels must be one for each of {len(x) + n_duplicates} points, got shape {given.shape}.")
    classes, code = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"labels must be of at least two classes, got {len(classes)}.")
    own = torch.from_numpy(code).to(x.device)[kept]
    same = (own[nearest(x, k=k).indices] == own[:, None]).double().mean(1)
    sizes = torch.bincount(own, minlength=len(classes)).double()
    weights = 1 / (sizes[own] * (sizes > 0).sum()) if weighted else torch.full_like(same, 1 / len(x))
    expected = (sizes[own] - 1) / (len(x) - 1)
    return Overlap(float((weights * same).sum()), float((weights * expected).sum()), len(x), n_duplicates)


def information_imbalance(a: Points, b: Points, *, k: int = 1) -> Imbalance:
    """2 / n times the mean rank, in the other representation, of the ``k`` nearest neighbours in one; both ways.

    A representation with a smaller imbalance towards the other contains more of what the other holds than the reverse.

    Args:
        a: ``point d_model``.
        b: The same points in another representation.
        k: Number of neighbours whose ranks are averaged.

    Raises:
        UserError: If the points cannot be used, or there are not more than ``k``.

    Source: Glielmo, Zeni, Cheng, Csanyi & Laio 2022, "Ranking the information content of distance measures", PNAS
        Nexus 1, arXiv 2104.15079.

    Example:
        >>> import numpy as np
        >>> a = np.random.default_rng(0).normal(size=(200, 2))
        >>> found = information_imbalance(a, a[:, :1])
        >>> found.a_to_b < found.b_to_a  # the plane predicts the line better than the line the plane
        True
    """
    (x, y), _, n_duplicates = unique_points(a, b, least=_least(k))
    near = [nearest(points, k=k).indices for points in (x, y)]
    forth = torch.cat([ranks(d, near[0][rows]) for rows, d in squared_distances(y)])
    back = torch.cat([ranks(d, near[1][rows]) for rows, d in squared_distances(x)])
    scale = 2 / len(x)
    return Imbalance(scale * forth.double().mean().item(), scale * back.double().mean().item(), len(x), n_duplicates)


def _least(k: int) -> int:
    if k < 1:
        raise UserError(f"k must be >= 1, got {k}.")
    return k + 2


def shared(a: Int64[Tensor, "point k"], b: Int64[Tensor, "point k"]) -> Float32[Tensor, " point"]:
    """The share of each point's neighbours in ``a`` that are also its neighbours in ``b``."""
    step = max(1, 2**26 // a.shape[1] ** 2)
    parts = [
        (a[start : start + step, :, None] == b[start : start + step, None, :]).any(2).float().mean(1)
        for start in range(0, len(a), step)
    ]
    return torch.cat(parts)


def ranks(distances: Float32[Tensor, "row point"], columns: Int64[Tensor, "row query"]) -> Int64[Tensor, "row query"]:
    """The rank, from 1, of the given columns among the distances of their row; equal distances share the lowest."""
    ordered = distances.sort(1).values
    return torch.searchsorted(ordered, distances.gather(1, columns).contiguous()) + 1
