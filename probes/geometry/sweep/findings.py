"""Where the dimension peaks and where two sides are nearest, each with an interval, or "not shown".

An interval comes from halves of the examples, drawn without replacement (the delete-half jackknife): a half differs
from the whole as the whole from other examples. Copies, as a bootstrap draws them, would be neighbours at distance 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from figures.findings.peaks import location_range
from records.intervals import effective_size, quantile, wilson
from records.resampling import permutation_p, select_best

Array = npt.NDArray[np.float64]
INTERVAL = "95% over halves of the examples, without replacement"
NOT_SPREAD = "none: halves do not differ"
HIGH_RANK = "none: the rank is more than a sixth of the examples"
_LEAST_PER_NEIGHBOUR = 6  # points for each neighbour of the rank: halves of fewer estimate another dimension
_ROUNDING = 1e-9  # shares are sums of fractions
_IMBALANCES = ("imbalance_a_to_b", "imbalance_b_to_a")
NEARER_IS_LOWER = (*_IMBALANCES, "cosine_gap")
_SHARE, _TWICE, _POSITIVE = (0.0, 1.0), (0.0, 2.0), (0.0, np.inf)
RANGES = {
    **dict.fromkeys(("overlap", "mutual_knn", "cka", "label_overlap"), _SHARE),
    **dict.fromkeys(NEARER_IS_LOWER, _TWICE),
    **dict.fromkeys(("gride", "two_nn"), _POSITIVE),
}


def jackknife_error(
    name: str, values: Float[Array, "*cell"] | float, draws: Float[Array, " draw *cell"]
) -> Float[Array, "*cell"]:
    """The standard errors of estimates from the spread of estimates on halves.

    Information imbalance is 2 / n times a mean rank, which is larger among fewer points the nearer the two sides are.
    Its spread on halves is therefore multiplied by the estimate divided by their mean: a heuristic, which
    ``benchmarks/calibration_of_instruments.py`` tests.

    Args:
        name: Of the measure.
        values: The estimates on all points.
        draws: Those on halves.

    Source: Shao & Wu 1989, "A General Theory for Jackknife Variance Estimation", Annals of Statistics 17: the factor
        (n - d) / d of the delete-d jackknife is 1 for halves.

    Example:
        >>> jackknife_error("cka", np.array([2.0, 5.0]), np.array([[1.0, 5.0], [3.0, 5.0]])).round(3)
        array([1.414, 0.   ])
    """
    error = np.asarray(draws.std(0, ddof=1), dtype=float)
    return np.asarray(error * (values / draws.mean(0))) if name in _IMBALANCES else error


class Interval(NamedTuple):
    """A 95 % interval."""

    lower: float
    upper: float


UNKNOWN = Interval(np.nan, np.nan)  # of a value without an interval


def interval_of(name: str, value: float, draws: Float[Array, " draw"]) -> Interval:
    """The interval of an estimate, within the range of its measure; NaN without spread.

    The overlap with labels is a share that is often near 1. It has Wilson's interval, with the effective size that the
    standard error gives; NaN at 0 and 1.

    Example:
        >>> interval_of("cka", 0.5, np.array([0.4, 0.6, 0.4, 0.6]))
        Interval(lower=0.13..., upper=0.86...)
    """
    error = float(jackknife_error(name, value, draws))
    if not error > _ROUNDING * max(abs(value), 1.0):
        return UNKNOWN
    if name == "label_overlap":
        if not _ROUNDING < value < 1 - _ROUNDING:
            return UNKNOWN
        ends = wilson(value, effective_size(value, error**2, 1), degrees=len(draws) - 1)
        return Interval(float(ends.lower), float(ends.upper))
    reach = float(quantile(len(draws) - 1)) * error
    lowest, highest = RANGES.get(name, (-np.inf, np.inf))
    return Interval(max(value - reach, lowest), min(value + reach, highest))


def has_interval(neighbour: int, n: int) -> bool:
    """Whether halves of ``n`` points give the spread of a dimension whose rank ends at this neighbour.

    Example:
        >>> has_interval(32, 298), has_interval(64, 298)
        (True, False)
    """
    return neighbour * _LEAST_PER_NEIGHBOUR <= n


def described(value: float, lower: float, *, high_rank: bool = False) -> str:
    """What the interval of a value is, or why there is none; empty without a value.

    Example:
        >>> described(9.5, np.nan, high_rank=True)
        'none: the rank is more than a sixth of the examples'
    """
    if np.isnan(value):
        return ""
    if np.isnan(lower):
        return HIGH_RANK if high_rank else NOT_SPREAD
    return INTERVAL


class Place(NamedTuple):
    """Where a curve, or a map, is highest or lowest."""

    cell: int
    first: int
    """The first cell of the range that holds the place in 95 % of the draws."""
    last: int
    value: float
    lower: float
    upper: float
    """The interval of the value at its place, widened for the choice of the place; NaN without spread."""
    everywhere: bool
    """True if the range holds every cell: the place is not known."""


def best_place(
    name: str, values: Float[Array, " cell"], draws: Float[Array, "draw cell"], *, seed: int, sign: int = 1
) -> Place:
    """The cell with the largest value (``sign`` 1) or the smallest (-1)."""
    known = np.isfinite(values) & np.isfinite(draws).all(0)
    cells = np.flatnonzero(known)
    if not len(cells):
        return Place(0, 0, len(values) - 1, np.nan, np.nan, np.nan, everywhere=True)
    errors = jackknife_error(name, values[cells], draws[:, cells])
    centred = (draws[:, cells] - draws[:, cells].mean(0)).T
    best = select_best(sign * values[cells], errors, sign * centred, seed=seed)
    first, last = location_range(best.shares)
    value, error = float(values[cells[best.place]]), float(errors[best.place])
    reach = [best.highest * error, float(quantile(len(draws) - 1)) * error]
    lowest, highest = RANGES.get(name, (-np.inf, np.inf))
    lower, upper = (value - reach[0], value + reach[1]) if sign > 0 else (value - reach[1], value + reach[0])
    lower, upper = (max(lower, lowest), min(upper, highest)) if error > 0 else (np.nan, np.nan)
    return Place(
        int(cells[best.place]), int(cells[first]), int(cells[last]), value, lower, upper,
        everywhere=len(cells) > 1 and first == 0 and last == len(cells) - 1,
    )  # fmt: skip


class Verdict(NamedTuple):
    """Whether a place is shown, the p-value against shuffled pairs, and the reason if it is not."""

    shown: bool
    p: float
    reason: str


def judge_peak(place: Place, random: Place | None) -> Verdict:
    """Shown if its range leaves out some layer, and the random model's peak is elsewhere or unknown."""
    if place.everywhere:
        return Verdict(shown=False, p=np.nan, reason="the range holds every layer")
    if random is not None and not random.everywhere and random.first <= place.last and place.first <= random.last:
        return Verdict(shown=False, p=np.nan, reason="the random model peaks there too")
    return Verdict(shown=True, p=np.nan, reason="")


def judge_nearest(
    place: Place, shuffles: Float[Array, "shuffle cell"], random: Interval | None, *, sign: int
) -> Verdict:
    """Shown if nearer than any layer of shuffled pairs, and than the random model at the same place.

    p is the share of the shuffles whose nearest cell is as near.
    """
    p = permutation_p(sign * place.value, (sign * shuffles).max(1))
    if not p <= 0.05:
        return Verdict(shown=False, p=p, reason="shuffled pairs are as near")
    if random is not None:
        lower, upper = (place.value, place.value) if np.isnan(place.lower) else (place.lower, place.upper)
        covered = random.upper >= lower if sign > 0 else random.lower <= upper
        if covered:
            return Verdict(shown=False, p=p, reason="the random model is as near")
    if place.everywhere:
        return Verdict(shown=False, p=p, reason="the range holds every layer")
    return Verdict(shown=True, p=p, reason="")


def layers_text(layers: Sequence[int], first: int, last: int) -> str:
    """A range of layers as text, for example ``12..14``."""
    return str(layers[first]) if first == last else f"{layers[first]}..{layers[last]}"
