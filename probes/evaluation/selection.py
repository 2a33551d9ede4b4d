"""What a choice among many sites allows to say: adjusted p-values, and the best site of each curve with its score."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from probes.evaluation.cross_validation import Result
from probes.evaluation.scores import CONSTANT, Score
from records.intervals import quantile
from records.named import named_interval
from records.resampling import NAMED_BELOW, NORMAL, Array, adjust_max, needed_of, select_best

_NAN = float("nan")
_ROUNDING = 1e-4  # standard errors


class Selected(NamedTuple):
    """One site among the sites of a target."""

    p_max: float
    """p-value adjusted for the choice among all sites of the target."""
    best_share: float
    """Share of bootstrap draws in which the site is the best of its curve; NaN if a score of the curve has no finite
    interval."""
    best_score: float = _NAN
    """Only for the best site of a curve: its score, corrected for the choice of the site."""
    best_lower: float = _NAN
    """Lower end of its interval, which allows for the choice and, below a ``p_max`` of 0.05, for being named."""
    best_upper: float = _NAN
    """Upper end."""


def select_sites(results: Sequence[Result], curves: Sequence[Hashable], *, seed: int) -> list[Selected]:
    """How each site of one target fares in the choice among all of them.

    The null hypothesis of ``p_max`` is that the labels can be exchanged between groups at every site. Then the largest
    score of all sites is distributed as that of shuffled labels, which are the same shuffles at all sites.

    Args:
        results: One for each site, from the same folds.
        curves: The curve of each site; a best site is looked for in each.
        seed: Of the draws.
    """
    observed, null = (np.array([getattr(result.permuted, name) for result in results]) for name in ("observed", "null"))
    p_max = adjust_max(observed, null)
    hurdles = hurdles_of(p_max, observed, null, [result.without_signal for result in results])
    found = [Selected(float(p), _NAN) for p in p_max]
    for curve in dict.fromkeys(curves):
        members = [i for i, other in enumerate(curves) if other == curve]
        best = choose_best([results[i].score for i in members], [hurdles[i] for i in members], seed=seed)
        if best is None:
            continue
        for i, share in zip(members, best.shares.tolist(), strict=True):
            found[i] = found[i]._replace(best_share=share)
        at = members[best.place]
        found[at] = found[at]._replace(best_score=best.score, best_lower=best.lower, best_upper=best.upper)
    return found


class BestScore(NamedTuple):
    """The best of several scores on the same groups, corrected for having been chosen."""

    place: int
    """Of the largest score."""
    shares: Float[Array, " score"]
    """Share of bootstrap draws in which each score is the best."""
    score: float
    """The largest score, corrected for the choice."""
    lower: float
    """Lower end of its interval, which allows for the choice and for being named."""
    upper: float
    """Upper end."""


class Hurdle(NamedTuple):
    """How far a score is from what it needs to be named."""

    chance: float
    """The score without signal."""
    needed: float
    """The distance from chance that is needed, as a share of the observed one; infinite where that is not named."""


def hurdles_of(
    p_max: Array, observed: Array, null: Float[Array, "score draw"], chances: Sequence[float]
) -> list[Hurdle]:
    """What each score of a family needs for ``p_max`` below 0.05, against the scores with smaller statistics.

    Args:
        p_max: What `adjust_max` returns.
        observed: Its statistics.
        null: The same under the null hypothesis.
        chances: The score without signal.

    Example:
        >>> observed, null = np.array([8.0]), np.arange(100.0)[None] / 25
        >>> hurdles_of(np.array([0.01]), observed, null, [0.5])
        [Hurdle(chance=0.5, needed=0.475)]
    """
    order = np.argsort(observed, kind="stable")
    running = np.maximum.accumulate(null[order], axis=0)
    found = [Hurdle(chance, np.inf) for chance in chances]
    for place, i in enumerate(order.tolist()):
        if p_max[i] < NAMED_BELOW:
            found[i] = Hurdle(chances[i], float(np.clip(needed_of(running[place]) / observed[i], 0, 1)))
    return found


def choose_best(scores: Sequence[Score], hurdles: Sequence[Hurdle], *, seed: int) -> BestScore | None:
    """The best of several scores with its corrected height and interval; None if one has no finite interval.

    Where the best score passes its hurdle, it is named because it does, and its interval allows for that too.

    Args:
        scores: Of the same groups, in the same order.
        hurdles: Of each score.
        seed: Of the draws.

    Example:
        >>> from probes.evaluation.scores import score_classes
        >>> truth = np.arange(40) % 2
        >>> scores = [score_classes(truth, np.where(np.arange(40) < n, 1 - truth, truth), 2, np.arange(40))["accuracy"]
        ...     for n in (4, 20)]
        >>> best = choose_best(scores, [Hurdle(0.5, 0.8), Hurdle(0.5, np.inf)], seed=0)
        >>> best.place, best.score <= scores[0].value, best.lower <= scores[0].lower
        (0, True, True)
    """
    z = np.array([quantile(score.spread.degrees) for score in scores])
    errors = np.array([score.spread.below(-1.0) - score.spread.below(1.0) for score in scores]) / 2
    errors[[score.interval == CONSTANT for score in scores]] = 0.0  # nothing that the groups show moves such a score
    values = np.array([score.value for score in scores])
    if not np.isfinite(values + errors).all():
        return None
    best = select_best(values, errors, np.stack([score.spread.influence for score in scores]), seed=seed)
    at, chosen, spread, hurdle = best.place, scores[best.place], scores[best.place].spread, hurdles[best.place]
    lowest, highest = best.highest * float(z[at]) / NORMAL, -float(z[at])  # standard errors below the score
    if np.isfinite(hurdle.needed) and errors[at] > 0:
        centre = hurdle.chance + hurdle.needed * (spread.centre - hurdle.chance)
        seen, needed = (each.above(hurdle.chance) for each in (spread, spread._replace(centre=centre)))
        if 0 < seen < np.inf:
            named = named_interval(seen, min(max(needed, 0.0), seen), spread.degrees)
            # A score of a probe is not below chance, so what being named adds ends there.
            lowest, highest = max(lowest, min(seen - named.lower, seen)), min(highest, seen - named.upper)
    lower, upper = spread.below(lowest) if np.isfinite(chosen.upper) else _NAN, chosen.upper
    if highest < -float(z[at]) - _ROUNDING:
        upper = spread.below(highest)
    # Draws can leave an optimism just below 0. R2 keeps its value where that is lower than the centre of its interval.
    return BestScore(at, best.shares, min(spread.below(max(best.optimism, 0.0)), chosen.value), lower, upper)
