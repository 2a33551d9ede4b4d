"""Intrinsic dimension from ratios of neighbour distances: TwoNN, GRIDE, and GRIDE over scales."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float
from scipy.optimize import brentq

from probes.geometry.neighbours import Points, nearest, unique_points
from tasks.errors import UserError

Array = npt.NDArray[np.float64]
Rank = tuple[int, int]
RANK: Rank = (16, 32)
LARGEST = 64
_OVERLAPPING = 20  # DADApy's cut: ratios above the median by more than 20 times the spread are near-duplicates


class Dimension(NamedTuple):
    """An intrinsic dimension with the standard error of its likelihood."""

    value: float
    error: float
    """NaN for the linear fit of TwoNN, which has no likelihood."""
    n: int
    """Ratios that the estimate rests on."""
    n_duplicates: int
    """Points that were left out because they repeat another."""


def two_nn(points: Points, *, method: Literal["linear", "mle"] = "linear", discard: float = 0.1) -> Dimension:
    """The intrinsic dimension from the ratio of the distances to the second and the first neighbour.

    The ratio mu has the density d mu^-(d + 1), so -log(1 - F(mu)) = d log mu: ``linear`` is the slope of the line
    through 0 without the largest ratios, ``mle`` is (n - 1) / sum log mu over all ratios.

    Args:
        points: ``point d_model``; duplicates are left out.
        method: ``linear`` or ``mle``.
        discard: Share of the largest ratios that the line leaves out.

    Raises:
        UserError: If the points cannot be used, or fewer than 2 ratios are left.

    Source: Facco, d'Errico, Rodriguez & Laio 2017, "Estimating the intrinsic dimension of datasets by a minimal
        neighborhood information", arXiv 1803.06992.

    Example:
        >>> import numpy as np
        >>> plane = np.random.default_rng(0).normal(size=(500, 2)) @ np.ones((2, 8)).cumsum(1) ** [[1], [2]]
        >>> round(two_nn(plane).value)
        2
    """
    if not 0 <= discard < 1:
        raise UserError(f"discard must be >= 0 and < 1, got {discard}.")
    (found,), _, n_duplicates = unique_points(points, names=("points",))
    ratios = log_ratios(np.asarray(nearest(found, k=2).distances.cpu(), dtype=np.float64), (1, 2), cut=False)
    if method == "mle":
        value = (len(ratios) - 1) / float(ratios.sum())
        return Dimension(value, value / len(ratios) ** 0.5, len(ratios), n_duplicates)
    return Dimension(two_nn_of(ratios, discard), float("nan"), len(ratios), n_duplicates)


def two_nn_of(ratios: Float[Array, " point"], discard: float = 0.1) -> float:
    """The slope through 0 of -log(1 - F) on the logarithms of the ratios, without the largest of them."""
    n = len(ratios)
    kept = int(n * (1 - discard))
    if kept < 2:
        raise UserError(f"points must leave at least 2 ratios of distances, got {kept}. Use more examples.")
    x = np.sort(ratios)[:kept]
    y = -np.log1p(-np.arange(1, kept + 1) / (n if kept < n else n + 1))  # F of the largest ratio is 1
    return float(x @ y / (x @ x))


def gride(points: Points, *, rank: Rank = RANK) -> Dimension:
    """The intrinsic dimension from the ratio of the distances to two neighbours further away than those of TwoNN.

    The maximum of the likelihood of mu = r[n2] / r[n1], whose density is
    d (mu^d - 1)^(n2 - n1 - 1) / (B(n2 - n1, n1) mu^((n2 - 1) d + 1)). A larger rank looks at a larger scale, beyond
    noise, and is biased low in high dimensions: compare dimensions at equal rank and equal numbers of points.

    Args:
        points: ``point d_model``; duplicates are left out.
        rank: The two neighbours n1 < n2.

    Raises:
        UserError: If the points cannot be used, or the rank is not below their number.

    Source: Denti, Doimo, Laio & Mira 2022, "The generalized ratios intrinsic dimension estimator", Scientific Reports
        12, arXiv 2104.13832; conventions of DADApy and scikit-dimension.

    Example:
        >>> import numpy as np
        >>> points = np.random.default_rng(0).normal(size=(1000, 3)) @ np.eye(3, 8)
        >>> round(gride(points).value)
        3
    """
    check_rank(rank)
    (found,), _, n_duplicates = unique_points(points, names=("points",), least=rank[1] + 1)
    distances = np.asarray(nearest(found, k=rank[1]).distances.cpu(), dtype=np.float64)
    ratios = log_ratios(distances, rank)
    value, error = fit_gride(ratios, rank)
    return Dimension(value, error, len(ratios), n_duplicates)


def dimension_curve(points: Points, *, largest: int = LARGEST) -> pd.DataFrame:
    """GRIDE at all scales: the ranks (1, 2), (2, 4), (4, 8), ... up to ``largest``.

    Args:
        points: ``point d_model``; duplicates are left out.
        largest: Largest rank of a neighbour; scales that need more points than there are are left out.

    Returns:
        One row for each scale: ``n1``, ``n2``, ``value``, ``error`` (of the likelihood), ``radius`` (mean distance to
        neighbour n2), ``n`` (ratios).

    Raises:
        UserError: If the points cannot be used, or ``largest`` is below 2.

    Example:
        >>> import numpy as np
        >>> curve = dimension_curve(np.random.default_rng(0).normal(size=(300, 4)), largest=16)
        >>> curve["n2"].tolist()
        [2, 4, 8, 16]
    """
    if largest < 2:
        raise UserError(f"largest must be >= 2, got {largest}.")
    (found,), _, _ = unique_points(points, names=("points",))
    ranks = scales(min(largest, len(found) - 1))
    distances = np.asarray(nearest(found, k=ranks[-1][1]).distances.cpu(), dtype=np.float64)
    return curve_of(distances, ranks)


def curve_of(distances: Float[Array, "point k"], ranks: Sequence[Rank]) -> pd.DataFrame:
    """The rows of ``dimension_curve`` from the distances to the nearest neighbours."""
    rows = []
    for rank in ranks:
        ratios = log_ratios(distances, rank)
        value, error = fit_gride(ratios, rank)
        rows.append((*rank, value, error, float(distances[:, rank[1] - 1].mean()), len(ratios)))
    return pd.DataFrame(rows, columns=["n1", "n2", "value", "error", "radius", "n"])


def scales(largest: int) -> list[Rank]:
    """The ranks (1, 2), (2, 4), ... whose second neighbour is at most ``largest``."""
    return [(2**i, 2 ** (i + 1)) for i in range(int(np.log2(largest)))]


def check_rank(rank: Rank) -> None:
    """Raise ``UserError`` unless the rank is two whole numbers, 1 <= n1 < n2."""
    if len(rank) != 2 or not 1 <= rank[0] < rank[1]:
        raise UserError(f"rank must be two numbers with 1 <= n1 < n2, got {rank}. The default is 16,32.")


def log_ratios(distances: Float[Array, "point k"], rank: Rank, *, cut: bool = True) -> Float[Array, " point"]:
    """``log_ratios_of`` for distances to the nearest neighbours in ascending order."""
    return log_ratios_of(distances[:, rank[0] - 1], distances[:, rank[1] - 1], rank, cut=cut)


def log_ratios_of(
    inner: Float[Array, " point"], outer: Float[Array, " point"], rank: Rank, *, cut: bool = True
) -> Float[Array, " point"]:
    """log(r[n2] / r[n1]) of the points at which it is defined; with ``cut`` without those of near-duplicates.

    Args:
        inner: The distance of each point to its neighbour ``rank[0]``.
        outer: To its neighbour ``rank[1]``.
        rank: The numbers of both neighbours, for the message.
        cut: Whether to leave out points with near-duplicates.

    Raises:
        UserError: If fewer than 2 points are left.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(outer / inner)
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)] if cut else ratios[np.isfinite(ratios)]
    if cut and len(ratios):
        with np.errstate(over="ignore"):
            ordered = np.sort(np.exp(ratios))
            high, middle = np.interp(np.array([0.95, 0.5]) * (len(ordered) - 1), np.arange(len(ordered)), ordered)
            ratios = ratios[np.exp(ratios) < _OVERLAPPING * (high - middle) + middle]
    if len(ratios) < 2 or ratios.sum() <= 0:
        raise UserError(
            f"points must leave at least 2 ratios of the distances to neighbours {rank[0]} and {rank[1]}, got "
            f"{len(ratios)}. Their distances are equal: use other points."
        )
    return np.asarray(ratios, dtype=np.float64)


def fit_gride(ratios: Float[Array, " point"], rank: Rank) -> tuple[float, float]:
    """The root of the score of GRIDE's likelihood, and its error from the observed Fisher information."""
    n1, n2 = rank
    n, total, free = len(ratios), float(ratios.sum()), n2 - n1 - 1

    def score(d: float) -> float:
        inner = free * float(np.sum(ratios / -np.expm1(-d * ratios))) if free else 0.0
        return (n - 1) / d + inner - (n2 - 1) * total

    if free:
        high = 1.0
        while score(high) > 0:
            high *= 2
        value = float(brentq(score, high / 2 if high > 1 else 1e-8, high, xtol=1e-10, rtol=1e-12))
    else:
        value = (n - 1) / (n1 * total)
    with np.errstate(over="ignore"):
        information = n / value**2 + free * float(np.sum((ratios / (2 * np.sinh(value * ratios / 2))) ** 2))
    return value, information**-0.5
