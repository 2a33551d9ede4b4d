"""From values by example to intervals and p-values: bootstrap, sign flips, and the correction for many cells.

Every function takes arrays ``cell example`` and treats all cells at once. The same draws serve all cells, so that two
cells with equal values get equal numbers.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.stats import false_discovery_control

Array = npt.NDArray[np.float64]
DRAWS = 2000  # bootstrap: the ends of a 95 % interval then rest on 50 draws each
FLIPS = 9999  # the smallest p is 1e-4, small enough to survive the correction for some hundred cells
_EXACT_UP_TO = 13  # examples: 2^13 = 8,192 sign patterns can all be tried
_CHUNK = 2**24  # numbers held at a time


class Intervals(NamedTuple):
    """The ends of one interval for each cell."""

    lower: Float[Array, "cell"]
    upper: Float[Array, "cell"]


def bootstrap_means(
    values: Float[Array, "cell example"], *, seed: int, level: float = 0.95, draws: int = DRAWS
) -> Intervals:
    """Percentile bootstrap intervals of the mean over examples.

    Args:
        values: Finite.
        seed: Of the draws.
        level: Covered share.
        draws: How many.

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 7.
    """
    return bootstrap_ratios(values, np.ones_like(values), seed=seed, level=level, draws=draws)


def bootstrap_ratios(
    numerators: Float[Array, "cell example"],
    denominators: Float[Array, "cell example"],
    *,
    seed: int,
    level: float = 0.95,
    draws: int = DRAWS,
) -> Intervals:
    """Percentile bootstrap intervals of sum(numerators) / sum(denominators), examples drawn in pairs of the two.

    Examples that do not count have 0 in both. An interval is NaN where more than (1 - level) / 2 of the draws have no
    ratio.
    """
    n_cells, n = numerators.shape
    tail = (1 - level) / 2
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    lower, upper = np.full(n_cells, np.nan), np.full(n_cells, np.nan)
    step = max(1, _CHUNK // draws)
    for start in range(0, n_cells, step):
        part = slice(start, start + step)
        below = denominators[part] @ counts.T
        above = numerators[part] @ counts.T
        ratios = np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)
        kept = np.isnan(ratios).mean(1) <= tail
        if kept.any():
            lower[part][kept], upper[part][kept] = np.nanquantile(ratios[kept], [tail, 1 - tail], axis=1)
    return Intervals(lower, upper)


def sign_flip_p(differences: Float[Array, "cell example"], *, seed: int, flips: int = FLIPS) -> Float[Array, "cell"]:
    """Two-sided p of each cell's mean difference: how often random signs make a mean at least as far from 0.

    With few examples all signs are tried and p is exact; else p counts the observed signs among the draws, so it is
    never 0.

    Args:
        differences: Changed minus unchanged run; under the null hypothesis each is as likely with the other sign.
        seed: Of the signs.
        flips: How many patterns are drawn.

    Source: Fisher 1935, "The Design of Experiments", section 21; Phipson and Smyth 2010, "Permutation P-values Should
        Never Be Zero", arXiv 1603.05766.
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
        slack = 1e-9 * np.abs(part).sum(1)[:, None]  # the observed signs themselves must count, whatever the rounding
        hits = (np.abs(part @ signs.T) >= seen - slack).sum(1)
        p[start : start + step] = hits / len(signs) if exact else (hits + 1) / (flips + 1)
    return p


def adjust_p(p: Float[Array, "cell"]) -> Float[Array, "cell"]:
    """Adjusted p for many cells: those below 0.05 hold at most 5 % false finds on average; NaN stays NaN.

    Source: Benjamini and Hochberg 1995, "Controlling the False Discovery Rate", J. R. Stat. Soc. B 57.
    """
    adjusted = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        adjusted[known] = false_discovery_control(p[known])
    return adjusted
