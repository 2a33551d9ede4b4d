"""What a choice among many sites allows to say: adjusted p-values, and the best site of each curve with its score."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from probes.evaluation.cross_validation import Result
from probes.evaluation.scores import CONSTANT, Score
from records.intervals import quantile
from records.resampling import NORMAL, Array, adjust_max, select_best

_NAN = float("nan")


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
    """Lower end of its interval, which allows for the choice."""
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
    permuted = [result.permuted for result in results]
    p_max = adjust_max(np.array([p.observed for p in permuted]), np.stack([p.null for p in permuted]))
    found = [Selected(float(p), _NAN) for p in p_max]
    for curve in dict.fromkeys(curves):
        members = [i for i, other in enumerate(curves) if other == curve]
        best = choose_best([results[i].score for i in members], seed=seed)
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
    """Lower end of its interval, which allows for the choice."""
    upper: float
    """Upper end."""


def choose_best(scores: Sequence[Score], *, seed: int) -> BestScore | None:
    """The best of several scores with its corrected height and interval; None if one has no finite interval.

    Args:
        scores: Of the same groups, in the same order.
        seed: Of the draws.

    Example:
        >>> from probes.evaluation.scores import score_classes
        >>> truth = np.arange(40) % 2
        >>> scores = [score_classes(truth, np.where(np.arange(40) < n, 1 - truth, truth), 2, np.arange(40))["accuracy"]
        ...     for n in (4, 20)]
        >>> best = choose_best(scores, seed=0)
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
    chosen, wider = scores[best.place], float(z[best.place]) / NORMAL
    lower = chosen.spread.below(best.highest * wider) if np.isfinite(chosen.upper) else _NAN
    # Draws can leave an optimism just below 0. R2 keeps its value where that is lower than the centre of its interval.
    height = min(chosen.spread.below(max(best.optimism, 0.0)), chosen.value)
    return BestScore(best.place, best.shares, height, lower, chosen.upper)
