"""All measures of two representations of the same points, with subsamples and shuffled pairs, from one search each.

found = measure(a, b, MeasurePlan(), labels={})
found.values["overlap"], found.draws["overlap"], found.shuffles["overlap"]
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from probes.geometry.dimension import LARGEST, RANK, Rank, fit_gride, log_ratios_of, scales, two_nn_of
from probes.geometry.neighbours import smallest
from probes.geometry.overlap import MUTUAL_K, K, ranks
from probes.geometry.search import Members, Searched
from probes.geometry.similarity import cka_of, hsic, select_points, standardised_distances
from records.resampling import draw_permutations

Array = npt.NDArray[np.float64]
Labels = Mapping[str, npt.NDArray[np.int64]]
PAIR_MEASURES = (
    "overlap", "mutual_knn", "imbalance_a_to_b", "imbalance_b_to_a", "cka", "cka_unbiased", "cosine_gap",
    "id_correlation",
)  # fmt: skip
_MOST_JOINT = 1000  # points of an ID correlation, whose every random pairing takes a search


@dataclass(frozen=True)
class MeasurePlan:
    """What is measured, and with how many draws."""

    rank: Rank = RANK
    k: int = K
    mutual_k: int = MUTUAL_K
    largest: int = LARGEST
    """Largest rank of a neighbour on the scaling curve."""
    draws: int = 40
    """Halves of the points, without replacement."""
    shuffles: int = 39
    """Random pairings."""
    seed: int = 0

    def ranks(self, n: int) -> list[Rank]:
        """The ranks of the scaling curve of ``n`` points, and the chosen one."""
        curve = scales(min(self.largest, self.n_half(n) - 1))
        return curve if self.rank in curve else [*curve, self.rank]

    def n_half(self, n: int) -> int:
        """The number of points in a half."""
        return n // 2

    @property
    def half_k(self) -> int:
        """Neighbours of the overlap in a half.

        Simulated intervals (``benchmarks/calibration_of_instruments.py``) are too narrow with ``k`` where that is a
        large part of a half, and too wide with k / 2.
        """
        return max(round(self.k / 2**0.5), 1)

    @property
    def half_label_k(self) -> int:
        """Neighbours of the overlap with labels in a half, in which a class has half of its points."""
        return max(self.k // 2, 1)

    @property
    def least(self) -> int:
        """The smallest number of points: a half has more than every k and rank."""
        return 2 * (max(self.k, self.mutual_k, self.rank[1]) + 2)

    @property
    def listed(self) -> int:
        """Neighbours by distance that measures need."""
        return max(self.k, self.rank[1], self.largest)


@dataclass(frozen=True, eq=False)
class Measured:
    """The measures of two representations, by name; the names of GRIDE's are those of ``dimension_name``."""

    n: int
    n_joint: int
    """Points of the ID correlation."""
    values: dict[str, float]
    draws: dict[str, Array]
    """On halves of the points."""
    shuffles: dict[str, Array]
    """On shuffled pairs, or shuffled labels; nothing for dimensions."""
    errors: dict[str, float]
    """Standard errors of the likelihood of dimensions."""


def dimension_name(side: str, rank: Rank) -> str:
    """The name of a GRIDE estimate among the values, for example ``a gride 16,32``."""
    return f"{side} gride {rank[0]},{rank[1]}"


def halves(n: int, plan: MeasurePlan, device: torch.device) -> Iterator[Members]:
    """The halves of the points, the same for all layers."""
    generator = np.random.default_rng(plan.seed)
    for _ in range(plan.draws):
        rows = torch.from_numpy(np.sort(generator.permutation(n)[: plan.n_half(n)])).to(device)
        inside = torch.zeros(n, dtype=torch.bool, device=device)
        inside[rows] = True
        yield Members(rows, inside)


def measure(a: Searched, b: Searched, plan: MeasurePlan, labels: Labels | None = None) -> Measured:
    """Every measure on all points, on halves of them, and on shuffled pairs.

    Args:
        a: A representation.
        b: Another one of the same points.
        plan: What to measure.
        labels: Class numbers of the points by target, for the overlap with labels.
    """
    n, device = len(a.points), a.points.device
    codes = {name: torch.from_numpy(code).to(device) for name, code in (labels or {}).items()}
    everyone = Members(torch.arange(n, device=device), torch.ones(n, dtype=torch.bool, device=device))
    cross = _cross_cosines(a, b)
    values = _on_members(a, b, cross, everyone, plan, codes)
    errors = {
        dimension_name(side, rank): fit_gride(_log_ratios(one.near.distances, rank), rank)[1]
        for side, one in (("a", a), ("b", b)) for rank in plan.ranks(n)
    }  # fmt: skip
    parts = [_on_members(a, b, cross, members, plan, codes) for members in halves(n, plan, device)]
    draws = {name: np.array([part[name] for part in parts]) for name in values}
    orders = torch.from_numpy(
        draw_permutations(np.arange(n), draws=plan.shuffles, generator=np.random.default_rng(plan.seed + 1))
    )
    shuffles = _on_shuffles(a, b, cross, orders.to(device), plan, codes)
    n_joint = min(n, _MOST_JOINT)
    joint, joint_draws, joint_shuffles = _id_correlation(a, b, n_joint, plan)
    values["id_correlation"], draws["id_correlation"], shuffles["id_correlation"] = joint, joint_draws, joint_shuffles
    return Measured(n, n_joint, values, draws, shuffles, errors)


def _on_members(
    a: Searched, b: Searched, cross: Tensor | None, members: Members, plan: MeasurePlan, codes: Mapping[str, Tensor]
) -> dict[str, float]:
    """The measures of some of the points, except the ID correlation."""
    m, rows = len(members.rows), members.rows
    whole = m == len(a.points)
    scale_ranks = plan.ranks(len(a.points))
    k, label_k = (plan.k, plan.k) if whole else (plan.half_k, plan.half_label_k)
    listed = max(k, label_k, *(rank[1] for rank in scale_ranks))
    near = [one.near_among(members, listed) for one in (a, b)]
    found: dict[str, float] = {}
    for side, lists in zip("ab", near, strict=True):
        found[f"{side} two_nn"] = two_nn_of(_log_ratios(lists.distances, (1, 2), cut=False))
        for rank in scale_ranks:
            found[dimension_name(side, rank)] = fit_gride(_log_ratios(lists.distances, rank), rank)[0]
        for name, code in codes.items():
            found[f"{side} label_overlap {name}"] = _label_share(lists.indices[:, :label_k], code[rows], code)
    aligned = [one.aligned_among(members, plan.mutual_k).indices for one in (a, b)]
    found["overlap"] = _shared(near[0].indices[:, :k], near[1].indices[:, :k], len(a.points))
    found["mutual_knn"] = _shared(aligned[0], aligned[1], len(a.points))
    for name, one, other in (("imbalance_a_to_b", near[0], b), ("imbalance_b_to_a", near[1], a)):
        own = other.squared if whole else select_points(other.squared, rows)
        to = other.squared[rows, one.indices[:, 0]]
        found[name] = 2 / m * ((own < to[:, None]).count_nonzero(1) + 1).double().mean().item()
    first, second = (one.kernel if whole else one.kernel.part(rows) for one in (a, b))
    found["cka"], found["cka_unbiased"] = cka_of(hsic(first, second), hsic(first, first), hsic(second, second))
    found["cosine_gap"] = _gap(cross, rows, rows)
    return found


def _on_shuffles(
    a: Searched,
    b: Searched,
    cross: Tensor | None,
    orders: Int64[Tensor, "shuffle point"],
    plan: MeasurePlan,
    codes: Mapping[str, Tensor],
) -> dict[str, Array]:
    """The pair measures with point i of a beside point ``order[i]`` of b, and labels in that order."""
    n = len(a.points)
    rows = torch.arange(n, device=orders.device)
    near = [one.near.indices[:, : plan.k] for one in (a, b)]
    aligned = [one.aligned.indices[:, : plan.mutual_k] for one in (a, b)]
    masks = [_mask(lists[0], n) for lists in (near, aligned)]
    own = [hsic(one.kernel, one.kernel) for one in (a, b)]
    found: dict[str, list[float]] = {}
    for order in orders:
        back = torch.empty_like(order)
        back[order] = rows
        values = {}
        for name, mask, lists in (("overlap", masks[0], near[1]), ("mutual_knn", masks[1], aligned[1])):
            values[name] = mask.gather(1, back[lists[order]]).double().mean().item()
        values["cka"], values["cka_unbiased"] = cka_of(hsic(a.kernel, b.kernel.part(order)), *own)
        values["cosine_gap"] = _gap(cross, rows, order)
        for name, code in codes.items():
            for side, lists in zip("ab", near, strict=True):
                values[f"{side} label_overlap {name}"] = _label_share(lists, code[order], code[order])
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    backs = orders.argsort(1)
    for name, one, other, theres, heres in (
        ("imbalance_a_to_b", a, b, orders, backs), ("imbalance_b_to_a", b, a, backs, orders),
    ):  # fmt: skip
        # row r of `other` holds the point that is paired with point here[r] of `one`
        columns = torch.stack(
            [there[one.near.indices[:, 0][here]] for there, here in zip(theres, heres, strict=True)], 1
        )
        found[name] = (2 / n * ranks(other.squared, columns).double().mean(0)).tolist()
    return {name: np.array(values) for name, values in found.items()}


def _id_correlation(a: Searched, b: Searched, n: int, plan: MeasurePlan) -> tuple[float, Array, Array]:
    """The ID correlation of ``n`` of the points, on halves of them, and on shuffled pairs."""
    generator = np.random.default_rng(plan.seed)
    chosen = torch.from_numpy(np.sort(generator.permutation(len(a.points))[:n])).to(a.points.device)
    first, second = (standardised_distances(one.points[chosen]) for one in (a, b))
    own = [_dimension(distances) for distances in (first, second)]

    def correlation(dimensions: Sequence[float], joint: float) -> float:
        return (sum(dimensions) - joint) / max(dimensions)

    draws = []
    for members in halves(n, plan, a.points.device):
        parts = [select_points(distances, members.rows) for distances in (first, second)]
        draws.append(correlation([_dimension(part) for part in parts], _dimension(parts[0] + parts[1])))
    orders = draw_permutations(np.arange(n), draws=plan.shuffles, generator=np.random.default_rng(plan.seed + 1))
    shuffles = [
        correlation(own, _dimension(first + select_points(second, torch.from_numpy(order).to(first.device))))
        for order in orders
    ]
    return correlation(own, _dimension(first + second)), np.array(draws), np.array(shuffles)


def _dimension(squared: Tensor) -> float:
    return two_nn_of(_log_ratios(smallest(squared, 2)[0], (1, 2), cut=False))


def _log_ratios(squared: Float32[Tensor, "row k"], rank: Rank, *, cut: bool = True) -> Array:
    inner, outer = (np.sqrt(squared[:, n - 1].cpu().numpy().astype(np.float64)) for n in rank)
    return log_ratios_of(inner, outer, rank, cut=cut)


def _mask(lists: Int64[Tensor, "row k"], n: int) -> Tensor:
    return torch.zeros(len(lists), n, dtype=torch.bool, device=lists.device).scatter_(1, lists, value=True)


def _shared(first: Int64[Tensor, "row k"], second: Int64[Tensor, "row k"], n: int) -> float:
    return _mask(first, n).gather(1, second).double().mean().item()


def _label_share(lists: Int64[Tensor, "row k"], own: Tensor, code: Tensor) -> float:
    """The class-weighted share of neighbours with a point's own label."""
    same = (code[lists] == own[:, None]).double().mean(1)
    sizes = torch.bincount(own)
    return (same / (sizes[own] * (sizes > 0).sum())).sum().item()


def _cross_cosines(a: Searched, b: Searched) -> Tensor | None:
    """The cosines of every point in a with every point in b; None for representations of different widths."""
    if a.points.shape[1] != b.points.shape[1]:
        return None
    first, second = (torch.nn.functional.normalize(one.points.double(), dim=1, eps=1e-30) for one in (a, b))
    return first @ second.T


def _gap(cross: Tensor | None, rows: Tensor, order: Tensor) -> float:
    """The cosine gap of points ``rows`` of a and ``order`` of b; NaN without cosines."""
    return float("nan") if cross is None else 1 - float(np.median(cross[rows, order].cpu().numpy()))
