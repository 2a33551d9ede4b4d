"""Measures on all points at once: linear CKA, the cosine gap between modalities, ID correlation."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from probes.geometry.dimension import log_ratios, two_nn_of
from probes.geometry.neighbours import (
    Points,
    as_points,
    inner_products,
    smallest,
    squared_distances,
    unique_points,
)
from records.resampling import draw_permutations, permutation_p
from tasks.errors import UserError

DRAWS = 99  # permutations: the smallest p is then 0.01


class Correlation(NamedTuple):
    """The share of intrinsic dimensions that two representations have in common."""

    value: float
    """0: the joint dimension is the sum of both. 1: it is the larger of them."""
    p: float
    """Share of shuffled pairs whose joint dimension is not larger."""
    joint: float
    """The dimension of both representations side by side."""
    n: int
    n_duplicates: int


def linear_cka(a: Points, b: Points, *, unbiased: bool = True) -> float:
    """Centred kernel alignment with linear kernels: HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)).

    1 for representations that are equal up to rotation, scale and shift. The biased estimate rises with
    d_model / n and is near 1 for independent points if n is below d_model; the unbiased one is 0 on average and may be
    negative.

    Args:
        a: ``point d_model``, at least 4 points.
        b: The same points in another representation.
        unbiased: HSIC_1 of Song et al. instead of the product of centred Gram matrices.

    Raises:
        UserError: If the points cannot be used, or all are equal.

    Source: Kornblith, Norouzi, Lee & Hinton 2019, arXiv 1905.00414; unbiased: Song, Smola, Gretton, Bedo & Borgwardt
        2012, "Feature Selection via Dependence Maximization", JMLR 13; Nguyen, Raghu & Kornblith 2021, arXiv
        2010.15327.

    Example:
        >>> import numpy as np
        >>> points = np.random.default_rng(0).normal(size=(50, 4))
        >>> round(linear_cka(points, 3 * points[:, ::-1] + 1), 6)
        1.0
    """
    (x, y), _, _ = unique_points(a, b, least=4)
    own_a, own_b = (Kernel.of(inner_products(points.double())) for points in (x, y))
    found = cka_of(hsic(own_a, own_b), hsic(own_a, own_a), hsic(own_b, own_b))
    return found.unbiased if unbiased else found.biased


class Kernel(NamedTuple):
    """A Gram matrix in the parts that CKA needs. Shift and scale of the points do not count."""

    off: Float[Tensor, "point point"]
    """The inner products of centred points, divided by their mean square; 0 on the diagonal."""
    diagonal: Float[Tensor, " point"]
    sums: Float[Tensor, " point"]
    """Sums of the rows of ``off``."""

    @classmethod
    def of(cls, products: Float[Tensor, "point point"]) -> "Kernel":
        """The kernel of points with these inner products in float64; raises ``UserError`` if all are equal."""
        means = products.mean(0)
        off = products - means - means[:, None] + means.mean()
        diagonal = off.diagonal().clone()
        scale = diagonal.mean()
        if not scale > 0:
            raise UserError("points must differ, got equal ones. Leave out sites with constant rows.")
        off = (off / scale).fill_diagonal_(0)
        return cls(off, diagonal / scale, off.sum(1))

    def part(self, rows: Int64[Tensor, " row"]) -> "Kernel":
        """The kernel of some of the points, or of all in another order."""
        off = select_points(self.off, rows)
        sums = self.sums[rows] if len(rows) == len(self.sums) else off.sum(1).to(self.sums.dtype)
        return Kernel(off, self.diagonal[rows], sums)


class Cka(NamedTuple):
    """Both estimates of linear CKA; NaN where an unbiased HSIC of one with itself is not positive."""

    biased: float
    unbiased: float


class Hsic(NamedTuple):
    """The Hilbert-Schmidt independence criterion, up to factors that depend on the number of points alone."""

    biased: float
    unbiased: float


def hsic(a: Kernel, b: Kernel) -> Hsic:
    """Both estimates for two kernels of the same points."""
    return hsic_of(a, b, float(a.off.flatten() @ b.off.flatten()))


def hsic_of(a: Kernel, b: Kernel, products: float) -> Hsic:
    """The same, given the sum of the products of ``off``."""
    n = len(a.sums)
    whole = [kernel.sums + kernel.diagonal for kernel in (a, b)]
    biased = products + float(a.diagonal @ b.diagonal) - 2 / n * float(whole[0] @ whole[1])
    biased += float(whole[0].sum()) * float(whole[1].sum()) / n**2
    total = float(a.sums.sum()) * float(b.sums.sum()) / ((n - 1) * (n - 2))
    return Hsic(biased, products + total - 2 / (n - 2) * float(a.sums @ b.sums))


def cka_of(both: Hsic, own_a: Hsic, own_b: Hsic) -> Cka:
    """Linear CKA, biased and unbiased; NaN where the criterion of one with itself is not positive."""
    return Cka(
        *(x / (y * z) ** 0.5 if y > 0 and z > 0 else float("nan") for x, y, z in zip(both, own_a, own_b, strict=True))
    )


def cosine_gap(a: Points, b: Points) -> float:
    """1 minus the median over points of the cosine between the two representations of a point.

    0: both point the same way. 1: they are orthogonal, as image and text tokens are in early layers.

    Args:
        a: ``point d_model``.
        b: The same points in another representation of the same width.

    Raises:
        UserError: If the points cannot be used, or the widths differ.

    Example:
        >>> round(cosine_gap([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, -1.0]]), 6)
        1.0
    """
    x, y = as_points(a, "a"), as_points(b, "b")
    if x.shape != y.shape:
        raise UserError(f"a and b must have the same shape, got {tuple(x.shape)} and {tuple(y.shape)}.")
    return 1 - float(np.median(cosines(x, y).cpu().numpy()))


def cosines(a: Float32[Tensor, "point d_model"], b: Float32[Tensor, "point d_model"]) -> Float[Tensor, " point"]:
    """The cosine between the two representations of each point, in float64."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1, eps=1e-30)


def id_correlation(a: Points, b: Points, *, draws: int = DRAWS, seed: int = 0) -> Correlation:
    """(ID(a) + ID(b) - ID(a, b)) / max(ID(a), ID(b)): how far the joint dimension lies below the sum of both.

    The dimensions are those of ``two_nn`` after every coordinate is standardised; the joint one is that of both
    representations side by side. It also finds non-linear dependence, for which linear CKA is 0.

    Args:
        a: ``point d_model``.
        b: The same points in another representation.
        draws: Number of random pairings for p.
        seed: Of the pairings.

    Raises:
        UserError: If the points cannot be used.

    Source: Basile, Acevedo, Bortolussi, Anselmi & Rodriguez 2024, "Intrinsic Dimension Correlation: uncovering
        nonlinear connections in multimodal representations", arXiv 2406.15812.

    Example:
        >>> import numpy as np
        >>> angle = np.random.default_rng(0).uniform(0, 6.28, size=(300, 1))
        >>> circle = np.hstack([np.cos(angle), np.sin(angle)])
        >>> found = id_correlation(circle, np.cos(3 * angle) * [[1.0, -1.0]])
        >>> found.value > 0.8, found.p
        (True, 0.01)
    """
    (x, y), _, n_duplicates = unique_points(a, b)
    first, second = (standardised_distances(points) for points in (x, y))
    own = [_dimension(distances) for distances in (first, second)]
    joint = _dimension(first + second)
    shuffles = draw_permutations(np.arange(len(x)), draws=draws, generator=np.random.default_rng(seed))
    null = np.array(
        [_dimension(first + select_points(second, order)) for order in torch.from_numpy(shuffles).to(x.device)]
    )
    return Correlation((sum(own) - joint) / max(own), permutation_p(-joint, -null), joint, len(x), n_duplicates)


def standardised_distances(points: Float32[Tensor, "point d_model"]) -> Float32[Tensor, "point point"]:
    """Squared distances after every coordinate is standardised; constant coordinates are left out."""
    exact = points.double()
    spread = exact.std(0, correction=0)
    scaled = (exact - exact.mean(0))[:, spread > 0] / spread[spread > 0]
    return torch.cat([distances for _, distances in squared_distances(scaled.float())])


def select_points(matrix: Float32[Tensor, "point point"], rows: Int64[Tensor, " row"]) -> Float32[Tensor, "row row"]:
    """The matrix for some of the points, or for all in another order."""
    # gathering along rows takes half to two thirds of the time of selecting columns
    return matrix.index_select(0, rows).gather(1, rows.expand(len(rows), -1))


def _dimension(squared: Float32[Tensor, "point point"]) -> float:
    found = smallest(squared, 2)[0].sqrt().cpu().numpy().astype(np.float64)
    return two_nn_of(log_ratios(found, (1, 2), cut=False))
