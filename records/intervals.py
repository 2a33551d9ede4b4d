"""95 % intervals of means, shares, ratios and scores over two kinds of units, in closed form.

Arrays are ``cell unit``: one row for each estimate, one column for each independent unit (a pair, a picture, a group of
examples). An interval is NaN where the units cannot give one; it never has zero width. ``benchmarks/calibration.py``
measures how often each interval covers the true value.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.stats import t as student

Array = npt.NDArray[np.float64]
Number = int | float | np.float64 | Array | npt.NDArray[np.int64]
LEVEL = 0.95
_ROUNDING = 1e-12  # variances below this share of the squared values are rounding errors


class Intervals(NamedTuple):
    """The ends of one interval for each cell."""

    lower: Float[Array, "*cell"]
    upper: Float[Array, "*cell"]

    def within(self, lowest: float, highest: float = np.inf) -> "Intervals":
        """The same with ends inside what the quantity can be; NaN stays NaN.

        Example:
            >>> import numpy as np
            >>> Intervals(np.array([-0.2]), np.array([0.9])).within(0.0)
            Intervals(lower=array([0.]), upper=array([0.9]))
        """
        return Intervals(np.clip(self.lower, lowest, highest), np.clip(self.upper, lowest, highest))


def quantile(degrees: Number, *, level: float = LEVEL) -> Array:
    """The number of standard errors on either side of an estimate: Student's quantile."""
    return np.asarray(student.ppf((1 + level) / 2, degrees), dtype=float)


def mean_intervals(values: Float[Array, "cell unit"], *, level: float = LEVEL) -> Intervals:
    """Intervals of the mean over units: Student's t, corrected for the skewness of the values.

    NaN with fewer than two units, and where all values are equal.

    Source: Hall 1992, "On the Removal of Skewness by Transformation", J. R. Stat. Soc. B 54.

    Example:
        >>> import numpy as np
        >>> found = mean_intervals(np.array([[1.0, 2.0, 3.0]]))
        >>> found.lower.round(2), found.upper.round(2)
        (array([-0.48]), array([4.48]))
    """
    n = values.shape[1]
    if n == 0:
        return Intervals(*np.full((2, len(values)), np.nan))
    mean = values.mean(1)
    centred = values - mean[:, None]
    spread = np.sqrt((centred**2).mean(1))
    known = (spread > _ROUNDING**0.5 * np.abs(values).max(1, initial=0.0)) & (n > 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = np.where(known, (centred**3).mean(1) / spread**3, 0.0)
        error = np.where(known, spread / max(n - 1, 1) ** 0.5, np.nan)
    z = quantile(max(n - 1, 1), level=level)
    return Intervals(mean - shifted_mean(z, skewness, n) * error, mean - shifted_mean(-z, skewness, n) * error)


def shifted_mean(z: Number, skewness: Array, n: int) -> Array:
    """The statistic (mean - truth) / error of ``n`` units that Hall's cubic transformation maps to ``z``."""
    slope = skewness / (3 * n**0.5)
    flat = np.abs(slope) < 1e-9
    cubed = 1 + 3 * slope * (z - skewness / (6 * n**0.5))
    return np.where(flat, z, (np.cbrt(cubed) - 1) / np.where(flat, 1.0, slope))


def unshifted_mean(statistic: Number, skewness: Array, n: int) -> Array:
    """The ``z`` that Hall's cubic transformation maps ``statistic`` to: `shifted_mean`, the other way.

    Args:
        statistic: (mean - truth) / error.
        skewness: Of the units.
        n: Number of units.

    Example:
        >>> import numpy as np
        >>> unshifted_mean(shifted_mean(1.5, np.array(2.0), 30), np.array(2.0), 30).round(6)
        np.float64(1.5)
    """
    slope = skewness / (3 * n**0.5)
    flat = np.abs(slope) < 1e-9
    with np.errstate(divide="ignore", invalid="ignore"):
        cubed = ((1 + slope * statistic) ** 3 - 1) / (3 * slope) + skewness / (6 * n**0.5)
    return np.asarray(np.where(flat, statistic, cubed), dtype=float)


def ratio_intervals(
    numerators: Float[Array, "cell unit"], denominators: Float[Array, "cell unit"], *, level: float = LEVEL
) -> Intervals:
    """Intervals of sum(numerators) / sum(denominators), by Fieller's theorem.

    NaN with fewer than two units that count, where the denominators' mean does not differ from 0 (any ratio would be
    possible), and where all ratios are equal.

    Args:
        numerators: 0 for units that do not count in a cell.
        denominators: 0 for units that do not count in a cell.
        level: Of confidence.

    Source: Fieller 1954, "Some Problems in Interval Estimation", J. R. Stat. Soc. B 16.

    Example:
        >>> import numpy as np
        >>> found = ratio_intervals(np.array([[1.0, 2.0, 4.0, 3.0]]), np.array([[3.0, 4.0, 6.0, 5.0]]))
        >>> found.lower.round(2), found.upper.round(2)
        (array([0.18]), array([0.69]))
    """
    counted = (numerators != 0) | (denominators != 0)
    n = np.maximum(counted.sum(1), 1)
    a, b = numerators.sum(1) / n, denominators.sum(1) / n
    from_a, from_b = (np.where(counted, x - m[:, None], 0.0) for x, m in ((numerators, a), (denominators, b)))
    over = n * np.maximum(n - 1, 1)
    var_a, var_b, both = ((x * y).sum(1) / over for x, y in ((from_a, from_a), (from_b, from_b), (from_a, from_b)))
    z2 = quantile(np.maximum(n - 1, 1), level=level) ** 2
    square, half, rest = b**2 - z2 * var_b, a * b - z2 * both, a**2 - z2 * var_a
    root = half**2 - square * rest
    known = (n > 1) & (square > 0) & (root > _ROUNDING * half**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = [np.where(known, (half + sign * np.sqrt(root)) / square, np.nan) for sign in (-1, 1)]
    return Intervals(ends[0], ends[1])


def wilson(share: Number, size: Number, *, degrees: Number = np.inf, level: float = LEVEL) -> Intervals:
    """Score interval of a share of ``size`` independent units; ``size`` may be an effective number of units.

    Args:
        share: In [0, 1].
        size: Number of units; may be a fraction.
        degrees: Of freedom of the variance that ``size`` was computed from.
        level: Of confidence.

    Source: Wilson 1927, "Probable Inference", JASA 22; with an effective size and Student's quantile: Korn & Graubard
        1998, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts", Survey Methodology.

    Example:
        >>> wilson(1.0, 20.0).lower.round(3)
        np.float64(0.839)
    """
    z = quantile(degrees, level=level)
    return Intervals(shifted_share(share, size, z), shifted_share(share, size, -z))


def shifted_share(share: Number, size: Number, z: Number) -> Array:
    """The true share if the observed one lies ``z`` of its standard errors above it; `wilson` takes both ends."""
    p, n, z2 = np.asarray(share, dtype=float), np.asarray(size, dtype=float), np.asarray(z, dtype=float) ** 2
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2)))
    found = (p + z2 / (2 * n) - np.sign(z) * half) / (1 + z2 / n)
    above = np.asarray(z) > 0
    return np.asarray(np.clip(found, np.where(above, 0.0, p), np.where(above, p, 1.0)), dtype=float)


def share_intervals(
    right: Float[Array, "cell unit"], asked: Float[Array, "cell unit"], *, level: float = LEVEL
) -> Intervals:
    """Intervals of the share sum(right) / sum(asked), where the answers of a unit may depend on each other.

    The effective size is the number of independent answers that would vary as much; if all are right or all wrong,
    it is the number of units.

    Args:
        right: Right answers of each unit.
        asked: Answers of each unit; 0 for units that do not count.
        level: Of confidence.

    Example:
        >>> import numpy as np
        >>> found = share_intervals(np.ones((1, 20)), np.ones((1, 20)))
        >>> found.lower.round(2), found.upper.round(2)
        (array([0.84]), array([1.]))
    """
    share, size, degrees = share_sizes(right, asked)
    found = wilson(share, size, degrees=degrees, level=level)
    empty = asked.sum(1) == 0
    return Intervals(*(np.where(empty, np.nan, end) for end in found))


def share_difference_intervals(
    one: Float[Array, "cell unit"],
    two: Float[Array, "cell unit"],
    asked_one: Float[Array, "cell unit"],
    asked_two: Float[Array, "cell unit"],
) -> Intervals:
    """Intervals of the mean over units of the difference between two shares of each unit.

    Put together from `share_intervals` of both mean shares and their correlation over units, which is taken nearer to 0
    by 2 / n; differences of small shares are too skewed for `mean_intervals`. NaN with fewer than two units.

    Args:
        one: Right answers of each unit.
        two: The same of the other share.
        asked_one: Answers of each unit; positive.
        asked_two: The same of the other share.

    Source: Newcombe 1998, "Improved Confidence Intervals for the Difference between Binomial Proportions Based on
        Paired Data", Statistics in Medicine 17.

    Example:
        >>> import numpy as np
        >>> found = share_difference_intervals(np.eye(1, 20), np.zeros((1, 20)), *np.full((2, 1, 20), 4.0))
        >>> found.lower.round(2), found.upper.round(2)
        (array([-0.17]), array([0.07]))
    """
    n = one.shape[1]
    if n < 2:
        return Intervals(*np.full((2, len(one)), np.nan))
    shares = one / asked_one, two / asked_two  # units count equally, whatever they are asked
    asked = (of.mean(1, keepdims=True) + 0 * of for of in (asked_one, asked_two))
    ends = [share_intervals(share * of, of) for share, of in zip(shares, asked, strict=True)]
    means = [share.mean(1) for share in shares]
    apart = [share - mean[:, None] for share, mean in zip(shares, means, strict=True)]
    squares = [(each**2).sum(1) for each in apart]
    varied = np.minimum(*squares) > _ROUNDING * n  # a share that is equal everywhere goes with nothing
    together = (apart[0] * apart[1]).sum(1) / np.sqrt(np.where(varied, squares[0] * squares[1], np.inf))
    together *= 1 - 2 / n  # two units always agree or disagree, and many that agree do not show that all would
    below = _joined(means[0] - ends[0].lower, ends[1].upper - means[1], together)
    above = _joined(ends[0].upper - means[0], means[1] - ends[1].lower, together)
    return Intervals(means[0] - means[1] - below, means[0] - means[1] + above)


def _joined(one: Array, two: Array, together: Array) -> Array:
    """How far the end of a difference lies from it, from those of its parts and their correlation."""
    return np.sqrt(np.maximum(one**2 + two**2 - 2 * together * one * two, 0.0))


class ShareSizes(NamedTuple):
    """Shares of right answers, and how much is known about them."""

    share: Float[Array, " cell"]
    size: Float[Array, " cell"]
    """Number of independent answers whose share would vary as much."""
    degrees: Float[Array, " cell"]
    """Degrees of freedom of the variance that the size was computed from; infinite if the size is known."""


def share_sizes(right: Float[Array, "cell unit"], asked: Float[Array, "cell unit"]) -> ShareSizes:
    """The shares of `share_intervals` with their effective sizes.

    Example:
        >>> import numpy as np
        >>> share_sizes(np.array([[1.0, 0.0, 1.0, 1.0]]), np.ones((1, 4)))
        ShareSizes(share=array([0.75]), size=array([4.]), degrees=array([inf]))
    """
    units = np.maximum((asked > 0).sum(1), 1)
    total = np.maximum(asked.sum(1), 1)
    share = right.sum(1) / total
    variance = ((right - share[:, None] * asked) ** 2).sum(1) / total**2 * units / np.maximum(units - 1, 1)
    single = asked.max(1, initial=0) <= 1  # one answer a unit: the size is known
    size = np.where(single, units, effective_size(share, variance, units)).astype(float)
    return ShareSizes(share, size, np.where(single, np.inf, np.maximum(units - 1, 1)))


def effective_size(share: Number, variance: Number, units: Number) -> Array:
    """The number of independent answers whose share would have this variance; ``units`` if the variance is 0."""
    p, v = np.asarray(share, dtype=float), np.asarray(variance, dtype=float)
    known = (p * (1 - p) > _ROUNDING) & (v > _ROUNDING)
    return np.where(known, p * (1 - p) / np.where(known, v, 1.0), units)


class Crossed(NamedTuple):
    """The mean of a table of rows (seeds) and columns (scenes), with its variance over both."""

    mean: float
    variance: float
    degrees: float


def crossed(residuals: Float[Array, "row column"]) -> Crossed:
    """Mean over rows and columns that were both drawn, with its variance and Satterthwaite's degrees of freedom.

    With one row, only columns vary.

    Source: Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin
        2; the sum of both variances less the interaction's: Cameron, Gelbach & Miller 2011, "Robust Inference with
        Multiway Clustering", J. Business & Economic Statistics 29.

    Example:
        >>> import numpy as np
        >>> crossed(np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]))
        Crossed(mean=2.0, variance=1.333..., degrees=1.68...)
    """
    n_rows, n_columns = residuals.shape
    mean = float(residuals.mean())
    parts = []
    for axis, n in ((0, n_columns), (1, n_rows)):
        parts.append((float(residuals.mean(axis).var(ddof=1) / n), n - 1) if n > 1 else (0.0, 1))
    total = sum(part for part, _ in parts)
    if n_rows > 1 and n_columns > 1:
        alone = residuals - residuals.mean(0) - residuals.mean(1, keepdims=True) + mean
        shared = float((alone**2).sum() / ((n_rows - 1) * (n_columns - 1)) / residuals.size)
        variance = max(total - shared, max(part for part, _ in parts))
    else:
        variance = total
    degrees = total**2 / sum(part**2 / df for part, df in parts) if total > 0 else max(df for _, df in parts)
    return Crossed(mean, variance, float(degrees))


def paired_share_intervals(
    above: Float[Array, "seed unit"],
    below: Float[Array, "seed unit"],
    asked: Float[Array, " unit"],
    *,
    ratio: bool,
) -> Intervals:
    """The interval of the ratio or the difference of two shares of right answers to the same questions.

    Two units are added: one in which only ``above`` has right answers, and one in which only ``below`` has. Without
    them, answers that hardly differ would be taken to be equal with near certainty. In each they are half-way between
    the number that both differ by where they differ (at least one) and all answers of a mean unit, since a unit that
    was not seen may change as a whole; all answers of a mean unit if both agree everywhere.

    NaN with one unit, and for a ratio if nothing in ``below`` is right.

    Args:
        above: Right answers of each unit; one row for each seed.
        below: The same of the reference.
        asked: Answers of each unit.
        ratio: ``above`` / ``below`` in place of ``above`` - ``below``.

    Source: Bonett & Price 2012, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on
        Paired Data", J. Educational and Behavioral Statistics 37.

    Example:
        >>> import numpy as np
        >>> right = np.ones((1, 20))
        >>> found = paired_share_intervals(right, right, right[0], ratio=False)
        >>> found.lower.round(2), found.upper.round(2)
        (np.float64(-0.14), np.float64(0.14))
    """
    n_seeds, n = above.shape
    if n < 2 or (ratio and not below.any()):
        return Intervals(np.asarray(np.nan), np.asarray(np.nan))
    apart = np.abs(above - below)
    whole = float(asked.mean())
    size = (max(1.0, float((apart**2).sum() / apart.sum())) + whole) / 2 if apart.any() else whole
    one = np.concatenate([above, np.tile([size, 0.0], (n_seeds, 1))], 1)
    two = np.concatenate([below, np.tile([0.0, size], (n_seeds, 1))], 1)
    of = np.concatenate([asked, [size, size]])
    if ratio:
        seen, centre = above.sum() / below.sum(), one.sum() / two.sum()
        varied = crossed((one - centre * two) / two.mean())
    else:
        seen, centre = (above - below).sum() / (n_seeds * asked.sum()), (one - two).sum() / (n_seeds * of.sum())
        varied = crossed((one - two - centre * of) / of.mean())
    half = float(quantile(varied.degrees)) * varied.variance**0.5
    found = Intervals(np.asarray(min(seen, centre - half)), np.asarray(max(seen, centre + half)))
    return found.within(0.0) if ratio else found.within(-1.0, 1.0)
