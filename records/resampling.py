"""Resampling statistics: permutations over groups, sign flips, the best of many cells, Benjamini-Hochberg.

Arrays are ``cell unit`` where many cells share the units (examples, pairs, pictures) that are resampled. All cells use
the same draws, so cells with equal values get equal numbers. Intervals are in `records.intervals`, `records.named`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
DRAWS = 2000  # bootstrap draws: each end of a 95 % range then rests on 50 of them
FLIPS = 9999  # the smallest p-value is 1e-4, which survives the correction for some hundred cells
TAIL = (1 - 0.95) / 2  # share of the draws below, and above, a 95 % interval
NAMED_BELOW = 0.05  # a cell or site is named where its ``p_max`` is below
NORMAL = 1.959964  # standard errors on either side of a 95 % interval
_EXACT_UP_TO = 13  # with 13 units there are 8,192 sign patterns, few enough to try all
_CHUNK = 2**24  # numbers held at a time


class Best(NamedTuple):
    """The best of several estimates on the same units, with the error that comes from choosing it."""

    place: int
    """Of the largest estimate."""
    shares: Float[Array, " cell"]
    """Share of bootstrap draws in which each cell has the largest estimate."""
    optimism: float
    """Mean difference between the best estimate of a draw and what that cell was drawn around, in standard errors."""
    highest: float
    """The upper end of that difference's 95 % range, at least 1.96: standard errors below the estimate."""


def select_best(
    estimates: Float[Array, " cell"],
    errors: Float[Array, " cell"],
    influence: Float[Array, "cell unit"],
    *,
    seed: int,
    draws: int = DRAWS,
) -> Best:
    """Which cell is best, how sure that is, and how much its estimate owes to being chosen.

    Draws are the estimates plus normal errors that are correlated over cells as the influence of the units is. They
    are drawn around the estimates, so the spread of the best cell in them is wider than that of the best estimate.

    Args:
        estimates: Finite.
        errors: Standard error of each estimate.
        influence: What each unit adds to each estimate; only its correlations over cells count.
        seed: Of the draws.
        draws: Number of draws.

    Source: Tibshirani & Tibshirani 2009, "A Bias Correction for the Minimum Error Rate in Cross-Validation", Annals of
        Applied Statistics 3; multiplier draws: Chernozhukov, Chetverikov & Kato 2013, arXiv 1212.6906.

    Example:
        >>> import numpy as np
        >>> best = select_best(np.array([0.5, 0.9]), np.array([0.01, 0.01]), np.eye(2), seed=0)
        >>> best.place, best.shares.tolist()
        (1, [0.0, 1.0])
    """
    if len(estimates) == 1:
        return Best(0, np.ones(1), 0.0, NORMAL)
    draws = min(draws, max(1, _CHUNK // len(estimates)))
    length = np.sqrt((influence**2).sum(1, keepdims=True))
    unit = np.divide(influence, length, out=np.zeros_like(influence), where=length > 0)
    normal = np.random.default_rng(seed).normal(size=(draws, influence.shape[1])) @ unit.T
    winner = (estimates + errors * normal).argmax(1)
    chosen = normal[np.arange(draws), winner]
    shares = np.bincount(winner, minlength=len(estimates)) / draws
    highest = max(float(np.quantile(chosen, 1 - TAIL)), NORMAL)
    return Best(int(np.argmax(estimates)), shares, float(chosen.mean()), highest)


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
    drawn = [shuffle_over_groups(groups, generator=generator) for _ in range(draws)]
    return np.array(drawn, dtype=np.int64).reshape(draws, np.size(groups))


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


class SignFlips(NamedTuple):
    """What random signs say about a family of cells."""

    p: Float[Array, " cell"]
    """The p-value of each cell alone."""
    p_max: Float[Array, " cell"]
    """Adjusted for the choice among all cells: the probability that any is below 0.05 without an effect is 5 %."""
    signs: Float[Array, "draw unit"]
    """The patterns; the observed one is among them or counts as one more."""
    smaller: Mapping[int, Float[Array, " draw"]]
    """For each cell that was asked for, the largest statistic in each draw of all cells with smaller ones."""


def sign_flip_tests(
    differences: Float[Array, "cell unit"], *, seed: int, flips: int = FLIPS, kept: Collection[int] = ()
) -> SignFlips:
    """Two-sided p-values of each cell's mean difference under random signs, alone and for the largest of all cells.

    With 13 units or fewer all sign patterns are tried and p is exact. Otherwise the observed signs count as one of the
    draws, so p is never 0. All cells share the signs. The largest of all cells is that of |sum| / root of the sum of
    squares, step by step without the cells that are larger.

    Args:
        differences: Changed minus unchanged run; under the null hypothesis all units' signs are equally likely, flipped
            in all cells together.
        seed: Of the signs.
        flips: Number of patterns drawn.
        kept: Cells for which ``smaller`` is kept, for `share_needed`.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson & Smyth 2010, as `permutation_p`; Westfall &
        Young 1993, "Resampling-Based Multiple Testing", algorithm 4.1.

    Example:
        >>> import numpy as np
        >>> sign_flip_tests(np.stack([np.ones(4), np.array([1.0, -1.0, 1.0, -1.0])]), seed=0).p
        array([0.125, 1.   ])
    """
    n_cells, n = differences.shape
    signs = _signs(n, seed=seed, flips=flips)
    length = np.sqrt((differences**2).sum(1, keepdims=True))
    unit = np.divide(differences, length, out=np.zeros_like(differences), where=length > 0)
    seen = np.abs(unit.sum(1))
    order = np.argsort(seen, kind="stable")
    p, p_max = np.empty(n_cells), np.empty(n_cells)
    largest, smaller = np.zeros(len(signs)), {}
    step = max(1, _CHUNK // len(signs))
    for start in range(0, n_cells, step):
        cells = order[start : start + step]
        drawn = np.abs(unit[cells] @ signs.T)
        # The observed signs must count as a hit in spite of rounding.
        slack = seen[cells, None] - 1e-9 * np.abs(unit[cells]).sum(1)[:, None]
        running = np.maximum(np.maximum.accumulate(drawn, axis=0), largest)
        p[cells], p_max[cells] = (_share_of_hits((null >= slack).sum(1), n, len(signs)) for null in (drawn, running))
        for cell in {*kept}.intersection(cells.tolist()):
            place = int(np.flatnonzero(cells == cell)[0])
            smaller[cell] = (running[place - 1] if place else largest).copy()
        largest = running[-1].copy()
    p_max[order] = np.maximum.accumulate(p_max[order][::-1])[::-1]
    return SignFlips(p, p_max, signs, smaller)


def _signs(n: int, *, seed: int, flips: int) -> Float[Array, "draw unit"]:
    """All sign patterns of a few units, else ``flips`` random ones."""
    if n <= _EXACT_UP_TO:
        return (1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)).astype(np.float64)
    return 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(flips, n)).astype(np.float64)


def _share_of_hits(hits: Int[Codes, " cell"], n: int, draws: int) -> Float[Array, " cell"]:
    """p-values of ``n`` units from the number of draws that reach the observed statistic."""
    return hits / draws if n <= _EXACT_UP_TO else (hits + 1) / (draws + 1)


def share_needed(tests: SignFlips, cell: int, shrunk: Callable[[float], Float[Array, " unit"]]) -> float:
    """The smallest share of a cell's effect with which its ``p_max`` would still be below 0.05, from 0 to 1.

    Args:
        tests: `sign_flip_tests`, with the cell among ``kept`` and a ``p_max`` below 0.05.
        cell: The cell.
        shrunk: The cell's differences with a share of their effect.

    Example:
        >>> import numpy as np
        >>> differences = 1 + np.random.default_rng(0).normal(size=(1, 30))
        >>> rest = differences[0] - differences[0].mean()
        >>> tests = sign_flip_tests(differences, seed=0, kept=[0])
        >>> round(share_needed(tests, 0, lambda share: rest + share * (differences[0] - rest)), 1)
        0.3
    """

    def is_named(share: float) -> bool:
        values = shrunk(share)
        length = (values**2).sum() ** 0.5
        null = np.maximum(np.abs(tests.signs @ values), tests.smaller[cell] * length)
        hits = (null >= abs(values.sum()) - 1e-9 * np.abs(values).sum()).sum(keepdims=True)
        return bool(_share_of_hits(hits, len(values), len(null))[0] < NAMED_BELOW)

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if is_named(middle) else (middle, high)
    return high


def adjust_max(observed: Float[Array, " cell"], null: Float[Array, "cell draw"]) -> Float[Array, " cell"]:
    """One-sided p-values of a family of cells, adjusted for the choice among them by the largest of each draw.

    Args:
        observed: Statistics in comparable units, for example in standard deviations of their null.
        null: The same under the null hypothesis; a draw is one permutation, the same for all cells.

    Source: Westfall & Young 1993, "Resampling-Based Multiple Testing", algorithm 4.1 (step-down).

    Example:
        >>> import numpy as np
        >>> adjust_max(np.array([3.0, 0.0]), np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 4.0]]))
        array([0.5, 1. ])
    """
    order = np.argsort(observed, kind="stable")
    running = np.maximum.accumulate(null[order], axis=0)
    p = np.array([permutation_p(float(value), draws) for value, draws in zip(observed[order], running, strict=True)])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[::-1])[::-1]
    return adjusted


def needed_of(null: Float[Array, " draw"]) -> float:
    """The statistic that has to be exceeded for a `permutation_p` below 0.05; infinite with too few draws.

    Example:
        >>> import numpy as np
        >>> needed_of(np.arange(100.0))
        95.0
        >>> permutation_p(95.0, np.arange(100.0)) < 0.05, permutation_p(95.1, np.arange(100.0)) < 0.05
        (False, True)
    """
    hits = math.ceil(NAMED_BELOW * (1 + len(null))) - 2  # the most that are allowed
    return float(np.sort(null)[-1 - hits]) if hits >= 0 else math.inf


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
