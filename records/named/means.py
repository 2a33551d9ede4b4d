"""The interval of a normal mean that is reported because it is significant."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from records.resampling import TAIL

_FAR = 100  # a mean so many times what is needed owes nothing to luck
_PRECISE = 1e4  # nor does one of so many standard errors: what is needed is not known as exactly
_DOUBLINGS = 30  # of a distance of standard errors, for few degrees of freedom


class NamedInterval(NamedTuple):
    """What is known about a mean that is reported because its t is large enough, in its standard errors.

    Example:
        >>> NamedInterval(lower=-0.5, middle=0.8, upper=5.0).lower
        -0.5
    """

    lower: float
    """Lower end."""
    middle: float
    """The mean that lies above half of what would have been reported."""
    upper: float
    """Upper end."""


def named_interval(seen: float, needed: float, degrees: int | float) -> NamedInterval:
    """95 % interval of a normal mean that is reported only where its absolute t is above ``needed``.

    Without an effect, or with a weak one, only means that are too large by luck are reported, so the usual interval
    misses. This one holds among the reported means, whatever the effect. Far above ``needed``, and for a mean of more
    than 10,000 standard errors, it is the usual one; just above, it holds 0. With few degrees of freedom, means on both
    sides of some that are not can be possible; the interval then reaches from the first to the last.

    Args:
        seen: The t of the mean.
        needed: The t above which means are reported; at most ``seen``.
        degrees: Of freedom: independent values less one.

    Raises:
        ValueError: If ``needed`` is above ``seen``, or a number is not positive and finite.

    Source: Zhong & Prentice 2008, "Bias-reduced estimators and confidence intervals for odds ratios in genome-wide
        association studies", Biostatistics 9; with an estimated variance by conditioning on the sum of squares about
        the tested mean: Fithian, Sun & Taylor 2014, "Optimal Inference After Model Selection", arXiv 1410.2597.

    Example:
        >>> [round(end, 2) for end in named_interval(3.3, 3.0, 39)]
        [-0.54, 0.78, 5.05]
        >>> [round(end, 2) for end in named_interval(20.0, 3.0, 39)]
        [17.98, 20.0, 22.02]
    """
    if not (0 < seen < math.inf and 0 <= needed <= seen and 0 < degrees < math.inf):
        raise ValueError(
            f"seen must be finite and at least needed, and degrees finite and above 0, got seen {seen}, needed "
            f"{needed}, degrees {degrees}."
        )
    usual = float(stdtrit(degrees, 1 - TAIL))
    if needed < seen / _FAR or seen > _PRECISE:
        return NamedInterval(seen - usual, seen, seen + usual)

    def excess(mean: float, share: float) -> float:
        return _share_above(mean, seen, needed, degrees) - share

    low, high = -max(1.0, seen), seen + max(4.0, usual + 1)
    for _ in range(_DOUBLINGS):
        low, high = low * (1 + (excess(low, TAIL) > 0)), high * (1 + (excess(high, 1 - TAIL) < 0))
    inner = np.linspace(-seen, seen + max(4.0, usual + 1), 160)  # the share can fall and rise again between these
    grid = sorted({low, high, *inner[(inner > low) & (inner < high)].tolist()})
    shares = [_share_above(mean, seen, needed, degrees) for mean in grid]

    def crossings(share: float) -> list[float]:
        """Means at which this share of what is reported is at or above what is seen; an end of the grid if none is."""
        above = [value > share for value in shares]
        places = [i for i in range(len(grid) - 1) if above[i] != above[i + 1]]
        found = [float(brentq(excess, grid[i], grid[i + 1], args=(share,), xtol=1e-6)) for i in places]
        return found or [grid[0 if above[0] else -1]]

    return NamedInterval(*sorted((crossings(TAIL)[0], crossings(0.5)[0], crossings(1 - TAIL)[-1])))


def _share_above(mean: float, seen: float, needed: float, degrees: int | float) -> float:
    """The share of reported t at or above the one seen, if the true mean is ``mean``.

    Given the sum of squares about the true mean, t about it has Student's distribution and decides whether it is
    reported: where |slope * sqrt(degrees + t^2) + t| is above ``needed``.
    """
    t_seen = seen - mean
    slope = mean / (degrees + t_seen**2) ** 0.5

    def reported(t: float) -> float:
        return float(slope * math.sqrt(degrees + t * t) + t)

    edges = {-math.inf, math.inf}
    for end in (needed, -needed):
        square, half, rest = 1 - slope**2, -end, end**2 - slope**2 * degrees  # square t^2 + 2 half t + rest = 0
        if abs(square) < 1e-12:
            found = [-rest / (2 * half)] if half else []
        else:
            root = max(half**2 - square * rest, 0.0) ** 0.5
            found = [(-half - root) / square, (-half + root) / square]
        edges |= {t for t in found if abs(reported(t) - end) <= 1e-6 * (1 + abs(t))}
    whole = above = 0.0
    for first, last in pairwise(sorted(edges)):
        inside = (max(first, min(last, 0.0) - 1e6) + min(last, max(first, 0.0) + 1e6)) / 2
        if abs(reported(inside)) > needed:
            whole += _student_share(first, last, degrees)
            above += _student_share(max(first, t_seen), last, degrees)
    return above / whole if whole > 0 else float(mean > seen)  # both are below the smallest number


def _student_share(first: float, last: float, degrees: int | float) -> float:
    """The probability that Student's t lies between two values."""
    if last <= first:
        return 0.0
    if first >= 0:  # the upper tail by the lower one, which keeps small numbers exact
        first, last = -last, -first
    return float(stdtr(degrees, last) - stdtr(degrees, first))
