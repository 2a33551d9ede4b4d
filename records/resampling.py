"""Resampling statistics: bootstrap intervals, permutations over groups, sign flips, Benjamini-Hochberg.

Arrays are ``cell unit`` where many cells share the units (examples, pairs, pictures) that are resampled. All cells use
the same draws, so cells with equal values get equal intervals and p-values.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
DRAWS = 2000  # bootstrap draws: each end of a 95 % interval then rests on 50 of them
FLIPS = 9999  # the smallest p-value is 1e-4, which survives the correction for some hundred cells
TAIL = (1 - 0.95) / 2  # share of the draws below, and above, a 95 % interval
_EXACT_UP_TO = 13  # with 13 units there are 8,192 sign patterns, few enough to try all
_CHUNK = 2**24  # numbers held at a time


class Intervals(NamedTuple):
    """The ends of one interval for each cell."""

    lower: Float[Array, "*cell"]
    upper: Float[Array, "*cell"]


class GroupDraws(NamedTuple):
    """Bootstrap draws of groups, shared by all scores on the same examples."""

    group: Int[Codes, " example"]
    """Group code of each example, from 0."""
    counts: Float[Array, "draw group"]
    """How often each draw takes each group."""


def draw_counts(n: int, *, draws: int, generator: np.random.Generator) -> Float[Array, "draw unit"]:
    """How often each bootstrap draw of ``n`` out of ``n`` units, with replacement, takes each unit."""
    return generator.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def draw_indices(n: int, *, draws: int, generator: np.random.Generator) -> Int[Codes, "draw unit"]:
    """The units that each bootstrap draw takes, as indices below ``n``."""
    return generator.integers(n, size=(draws, n))


def draw_groups(groups: npt.ArrayLike, *, draws: int, generator: np.random.Generator) -> GroupDraws:
    """Bootstrap draws of as many groups as there are."""
    names, code = np.unique(np.asarray(groups), return_inverse=True)
    return GroupDraws(code.astype(np.int64), draw_counts(len(names), draws=draws, generator=generator))


def percentile_interval(draws: Float[Array, "*cell draw"], *, tail: float = TAIL) -> Intervals:
    """The percentile interval of each cell over its draws; NaN draws are left out.

    Args:
        draws: A statistic in each draw.
        tail: Share of the draws on either side of the interval.

    Example:
        >>> import numpy as np
        >>> percentile_interval(np.arange(101.0), tail=0.1)
        Intervals(lower=np.float64(10.0), upper=np.float64(90.0))
    """
    return Intervals(*np.nanquantile(draws, [tail, 1 - tail], axis=-1))


def bootstrap_means(
    values: Float[Array, "cell unit"], *, seed: int, tail: float = TAIL, draws: int = DRAWS
) -> Intervals:
    """Percentile bootstrap intervals of the mean over units.

    Args:
        values: Finite values.
        seed: Seed of the draws.
        tail: Share of the draws on either side of the interval.
        draws: Number of draws.

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7.

    Example:
        >>> import numpy as np
        >>> bootstrap_means(np.ones((1, 5)), seed=0)
        Intervals(lower=array([1.]), upper=array([1.]))
    """
    return bootstrap_ratios(values, np.ones_like(values), seed=seed, tail=tail, draws=draws)


def bootstrap_ratios(
    numerators: Float[Array, "cell unit"],
    denominators: Float[Array, "cell unit"],
    *,
    seed: int,
    tail: float = TAIL,
    draws: int = DRAWS,
) -> Intervals:
    """Percentile bootstrap intervals of sum(numerators) / sum(denominators), resampled together.

    An interval is NaN if more than ``tail`` of the draws have a denominator of 0.

    Args:
        numerators: Numerator of each unit; 0 for units that do not count in a cell.
        denominators: Denominator of each unit; 0 for units that do not count in a cell.
        seed: Seed of the draws.
        tail: Share of the draws on either side of the interval.
        draws: Number of draws.
    """
    n_cells, n = numerators.shape
    generator = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // n)
    blocks = [
        draw_counts(n, draws=min(at_once, draws - start), generator=generator) for start in range(0, draws, at_once)
    ]
    lower, upper = np.full(n_cells, np.nan), np.full(n_cells, np.nan)
    step = max(1, _CHUNK // draws)
    for start in range(0, n_cells, step):
        part = slice(start, start + step)
        above, below = (
            np.concatenate([values[part] @ counts.T for counts in blocks], axis=1)
            for values in (numerators, denominators)
        )
        ratios = np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
        kept = np.isnan(ratios).mean(1) <= tail
        if kept.any():
            lower[part][kept], upper[part][kept] = percentile_interval(ratios[kept], tail=tail)
    return Intervals(lower, upper)


def shuffle_over_groups(groups: npt.ArrayLike, *, generator: np.random.Generator) -> Int[Codes, " example"]:
    """Index that gives each group the labels of another group: ``y[index]`` are the shuffled labels.

    Groups trade places with groups of the same size, so labels that are constant within groups, or follow a pattern
    there, still do; shuffling single examples would make chance look too low. Groups whose size is unique are
    concatenated in random order and dealt out again.
    """
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(code, kind="stable")
    sizes = np.bincount(code)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    index = np.empty(len(code), dtype=np.int64)
    alone: list[int] = []
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        if len(members) == 1:
            alone.append(int(members[0]))
            continue
        donors = generator.permutation(members)
        within = np.arange(size)
        index[order[starts[members][:, None] + within]] = order[starts[donors][:, None] + within]
    if alone:
        spans = [order[starts[g] : starts[g] + sizes[g]] for g in alone]
        index[np.concatenate(spans)] = np.concatenate([spans[i] for i in generator.permutation(len(spans))])
    return index


def draw_permutations(
    groups: npt.ArrayLike, *, draws: int, generator: np.random.Generator
) -> Int[Codes, "draw example"]:
    """Rows of indices, each the result of one `shuffle_over_groups`."""
    return np.stack([shuffle_over_groups(groups, generator=generator) for _ in range(draws)])


def permutation_p(observed: float, null: Float[Array, " draw"]) -> float:
    """One-sided p-value ``(1 + hits) / (1 + draws)``: the share of the null statistics at or above the observed one.

    Source: Phipson & Smyth 2010, "Permutation P-values Should Never Be Zero", doi 10.2202/1544-6115.1585.

    Example:
        >>> import numpy as np
        >>> permutation_p(2.0, np.array([0.0, 1.0, 3.0]))
        0.5
    """
    hits = (null >= observed - 1e-12 * abs(observed)).sum()  # the slack absorbs rounding of equal statistics
    return float((1 + hits) / (1 + len(null)))


def sign_flip_p(differences: Float[Array, "cell unit"], *, seed: int, flips: int = FLIPS) -> Float[Array, " cell"]:
    """Two-sided p-value of each cell's mean difference under random signs.

    With 13 units or fewer all sign patterns are tried and the p-value is exact. Otherwise the observed signs count as
    one of the draws, so the p-value is never 0.

    Args:
        differences: Changed minus unchanged run; under the null hypothesis either sign is equally likely.
        seed: Seed of the random signs.
        flips: Number of patterns drawn.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson & Smyth 2010, as in `permutation_p`.

    Example:
        >>> import numpy as np
        >>> sign_flip_p(np.ones((1, 4)), seed=0)
        array([0.125])
    """
    n_cells, n = differences.shape
    exact = n <= _EXACT_UP_TO
    if exact:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        signs = 1.0 - 2.0 * bits
    else:
        signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(flips, n)).astype(np.float64)
    p = np.empty(n_cells)
    step = max(1, _CHUNK // len(signs))
    for start in range(0, n_cells, step):
        part = differences[start : start + step]
        seen = np.abs(part.sum(1))[:, None]
        slack = 1e-9 * np.abs(part).sum(1)[:, None]  # the observed signs must count as a hit in spite of rounding
        hits = (np.abs(part @ signs.T) >= seen - slack).sum(1)
        p[start : start + step] = hits / len(signs) if exact else (hits + 1) / (flips + 1)
    return p


def adjust_p(p: Float[Array, " cell"]) -> Float[Array, " cell"]:
    """Benjamini-Hochberg adjusted p-values of a family of cells; NaN stays NaN.

    Of the cells whose adjusted p-value is below 0.05, at most 5 % are false discoveries on average.

    Source: Benjamini & Hochberg 1995, "Controlling the False Discovery Rate", J. R. Stat. Soc. B 57.

    Example:
        >>> import numpy as np
        >>> adjust_p(np.array([0.01, 0.04, np.nan]))
        array([0.02, 0.04,  nan])
    """
    adjusted = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        adjusted[known] = false_discovery_control(p[known])
    return adjusted
