"""The interval of a share of units that is reported because it is significant."""

from scipy.optimize import brentq
from scipy.special import betainc

from records.named.means import NamedInterval
from records.resampling import TAIL

_SMALLEST = 1e-300  # ratios of smaller probabilities are taken to be those at a share of 0


def named_share(count: int, needed: int, size: int) -> NamedInterval:
    """95 % interval of a share of units that is reported only where at least ``needed`` of ``size`` are counted.

    The probability of the observed count is halved, as for other intervals of shares that are not to be too wide.

    Args:
        count: Units counted.
        needed: From 1 to ``count``.
        size: Independent units.

    Raises:
        ValueError: If ``count`` is below ``needed`` or above ``size``, or ``needed`` below 1.

    Source: as `named_interval`, for a binomial count; half of the observed count: Lancaster 1961, "Significance Tests
        in Discrete Distributions", JASA 56.

    Example:
        >>> [round(end, 2) for end in named_share(8, 7, 10)]
        [0.12, 0.75, 0.96]
        >>> [round(end, 2) for end in named_share(8, 1, 10)]
        [0.48, 0.79, 0.97]
    """
    if not 1 <= needed <= count <= size:
        raise ValueError(f"count must be from needed to size, and needed from 1, got {count}, {needed} and {size}.")

    def at_least(counted: int, share: float) -> float:
        return float(betainc(counted, size - counted + 1, share)) if counted <= size else 0.0

    def above(share: float) -> float:
        named = at_least(needed, share)
        seen = (at_least(count, share) + at_least(count + 1, share)) / 2
        return seen / named if named > _SMALLEST else 0.5 * (count == needed)

    def solve(level: float) -> float:
        low, high = 1e-9, 1 - 1e-9
        if above(low) > level - 1e-6:
            return 0.0
        if above(high) < level:
            return 1.0
        return float(brentq(lambda share: above(share) - level, low, high, xtol=1e-6))

    return NamedInterval(solve(TAIL), solve(0.5), solve(1 - TAIL))
