"""Scores of several plans side by side: accuracy and retention by condition and question family, with intervals.

Retention is a plan's accuracy divided by that of full tuning with the same seeds. Intervals are about other scenes and
other seeds, and pair both plans, so that a difficulty common to both cancels. With one seed they are about other scenes
only, and say so.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from records.intervals import (
    crossed,
    effective_size,
    mean_intervals,
    paired_share_intervals,
    ratio_intervals,
    wilson,
)
from tasks.errors import UserError

# What the interval of retention is about
INTERVAL = "95% t over scenes and seeds, paired with full"
ONE_SEED = "95% t over scenes, paired with full; this seed only, as one seed gives no interval over seeds"
UNTRAINED = "95% t over scenes and full's seeds, paired with full"
TEXT = "95% t over seeds"
ONE_TEXT = "none: one seed gives no interval over seeds"
NO_PAIR = "none: no seed is shared with full"
REFERENCE = "none: the reference itself"
# What the interval of a difference is about
DIFFERENCE = "95% t over scenes and seeds, paired"
DIFFERENCE_ONE_SEED = "95% t over scenes, paired; this seed only"
# What the interval of a score is about
SCORE = "95% Wilson over scenes and seeds"
SCORE_ONE_SEED = "95% Wilson over scenes; this seed only"
_COLUMNS = [
    "plan", "condition", "family", "metric", "score", "score_lower", "score_upper", "score_interval", "chance",
    "retention", "lower", "upper", "n", "seeds", "interval",
]  # fmt: skip
_DIFFERENCES = ["plan", "condition", "family", "difference", "lower", "upper", "n", "seeds", "interval"]
_REFERENCE = {"lower": np.nan, "upper": np.nan, "interval": REFERENCE}
_UNDEFINED = {"retention": np.nan, "lower": np.nan, "upper": np.nan, "interval": NO_PAIR}


class _Answers(NamedTuple):
    """The answers of one plan in one condition and family."""

    right: pd.DataFrame
    """Number of right answers, ``seed`` by ``id``."""
    asked: NDArray[np.float64]
    """Number of answers of each id."""

    def shared(self, other: "_Answers") -> "_Answers":
        """The answers with the seeds that ``other`` also has."""
        return self._replace(right=self.right[self.right.index.isin(other.right.index)])

    def score(self) -> float:
        """Share of right answers, mean over seeds."""
        return float((self.right.to_numpy().sum(1) / self.asked.sum()).mean())

    def counts(self) -> NDArray[np.float64]:
        """Right answers ``seed`` by ``id``."""
        return self.right.to_numpy(dtype=float)

    def per_scene(self) -> NDArray[np.float64]:
        """Right answers ``seed`` by ``id``, scaled so that their mean is the score."""
        return self.counts() * float(len(self.asked) / self.asked.sum())


def summarise(
    answers: pd.DataFrame,
    words: pd.DataFrame,
    *,
    full: str = "full",
    untrained: Collection[str] = (),
    chance: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """One row for each plan, condition and family.

    Args:
        answers: ``plan, seed, condition, id, family, right``: one row per answer. Answers with the same ``id`` (a scene
            or picture) are resampled together. Answers without a family count in family ``all`` only.
        words: ``plan, seed, value``: mean log-likelihood of a token of ordinary text, in nats.
        full: The plan that the others are compared with.
        untrained: Plans that train nothing. Their seed has no effect, so they are compared with all seeds of ``full``.
        chance: Share of right answers of a random guess by condition and family, where it is known.

    Returns:
        Columns ``plan, condition, family, metric, score, score_lower, score_upper, score_interval, chance,
        retention, lower, upper, n, seeds, interval``. Family ``all`` holds all answers. Condition ``passage`` is
        ordinary text: its score is the exponential of ``value``, and its intervals are over seeds; with one seed there
        is none.

        ``score``, its interval and ``seeds`` cover all seeds of the plan. ``retention``, ``lower`` and ``upper`` cover
        the seeds that the plan shares with ``full``, so with fewer seeds than ``full`` retention is not the quotient of
        the two scores in this table. ``interval`` and ``score_interval`` say what the intervals are about. Retention
        is NaN if no seed is shared or full tuning scores 0; that of ``full`` is 1 by definition.

    Raises:
        UserError: If plans or seeds have answers to different questions.
    """
    rows: list[dict[str, Any]] = []
    for condition, family, chosen in _families(answers):
        guess = (chance or {}).get(condition, {})
        cell = {
            "condition": condition,
            "family": family,
            "metric": "accuracy",
            "chance": float(np.mean([guess.get(str(name), np.nan) for name in chosen["family"]])),
        }
        by_plan = _by_plan(chosen)
        for plan, own in by_plan.items():
            compared = _compare(own, by_plan[full], trains=plan not in untrained)
            rows.append({"plan": plan, **cell, **compared, **(_REFERENCE if plan == full else {})})
    full_words = words[words["plan"] == full]
    for name, own_words in words.groupby("plan", sort=False):
        compared = _compare_text(own_words, full_words, trains=name not in untrained)
        rows.append({"plan": name, **compared, **(_REFERENCE if name == full else {})})
    return pd.DataFrame(rows, columns=_COLUMNS)


def differences(answers: pd.DataFrame, plan: str, *, untrained: Collection[str] = ()) -> pd.DataFrame:
    """The accuracy of one plan minus that of each other plan, paired by scene and seed.

    Args:
        answers: As for ``summarise``.
        plan: The plan that is compared with the others.
        untrained: Plans whose seed has no effect; they are left out.

    Returns:
        ``plan, condition, family, difference, lower, upper, n, seeds, interval``, one row for each other plan,
        condition and family. ``difference`` is over the seeds that both plans have; ``lower`` and ``upper`` are a 95 %
        interval about other scenes and other seeds. Plans that share no seed with ``plan`` are left out.

    Raises:
        UserError: If there are no answers of ``plan``, or plans have answers to different questions.
    """
    answers = answers[~answers["plan"].isin(list(untrained))]
    if not (answers["plan"] == plan).any():
        raise UserError(f"plan must be one of {', '.join(answers['plan'].unique())}, got {plan!r}.")
    rows: list[dict[str, Any]] = []
    for condition, family, chosen in _families(answers):
        by_plan = _by_plan(chosen)
        for name, found in by_plan.items():
            mine, other = by_plan[plan].shared(found), found.shared(by_plan[plan])
            if name == plan or mine.right.empty:
                continue
            _check_same_questions(mine, other)
            lower, upper = paired_share_intervals(mine.counts(), other.counts(), mine.asked, ratio=False)
            rows.append(
                {
                    "plan": name,
                    "condition": condition,
                    "family": family,
                    "difference": mine.score() - other.score(),
                    "lower": float(lower),
                    "upper": float(upper),
                    "n": len(mine.asked),
                    "seeds": len(mine.right),
                    "interval": DIFFERENCE_ONE_SEED if len(mine.right) == 1 else DIFFERENCE,
                }
            )
    return pd.DataFrame(rows, columns=_DIFFERENCES)


def _families(answers: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The answers of each condition and family; ``all`` comes last."""
    for condition, part in answers.groupby("condition", sort=False):
        for family, own in part.groupby("family", sort=False):
            if family:
                yield str(condition), str(family), own
        yield str(condition), "all", part


def _by_plan(answers: pd.DataFrame) -> dict[str, _Answers]:
    found = {}
    for plan, own in answers.groupby("plan", sort=False):
        cells = own.groupby(["seed", "id"])["right"]
        right, asked = cells.sum().unstack().astype(float), cells.count().unstack()
        if (asked != asked.iloc[0]).any(axis=None):
            raise UserError(f"every seed of a plan must be asked the same, got others in {own['condition'].iloc[0]!r}.")
        found[str(plan)] = _Answers(right, asked.iloc[0].to_numpy(dtype=float))
    return found


def _check_same_questions(own: _Answers, other: _Answers) -> None:
    if not own.right.columns.equals(other.right.columns) or (own.asked != other.asked).any():
        raise UserError("plans must be asked the same to be compared, got different questions. Score them again.")


def _compare(own: _Answers, full: _Answers, *, trains: bool) -> dict[str, Any]:
    """Score and retention of a plan: the score over all its seeds, retention over those that it shares with full."""
    _check_same_questions(own, full)
    score = own.score()
    varied = crossed(own.per_scene() - score * own.asked * (len(own.asked) / own.asked.sum()))
    ends = wilson(score, effective_size(score, varied.variance, len(own.asked)), degrees=varied.degrees)
    found = {
        "score": score,
        "score_lower": float(ends.lower),
        "score_upper": float(ends.upper),
        "score_interval": SCORE_ONE_SEED if len(own.right) == 1 else SCORE,
        "n": len(own.asked),
        "seeds": len(own.right),
        **_UNDEFINED,
    }
    mine, whole = (own.shared(full), full.shared(own)) if trains else (own, full)
    if mine.right.empty:
        return found
    found["interval"] = ONE_SEED if len(whole.right) == 1 else INTERVAL if trains else UNTRAINED
    base = whole.score()
    if base == 0:
        return found
    above = mine.counts() if trains else np.tile(mine.counts().mean(0), (len(whole.right), 1))
    lower, upper = paired_share_intervals(above, whole.counts(), own.asked, ratio=True)
    return found | {"retention": mine.score() / base, "lower": float(lower), "upper": float(upper)}


def _compare_text(own: pd.DataFrame, full: pd.DataFrame, *, trains: bool) -> dict[str, Any]:
    """Score and retention of a plan on ordinary text; the intervals are over seeds."""
    own, full = own.sort_values("seed"), full.sort_values("seed")
    values = np.exp(own["value"])
    ends = mean_intervals(values.to_numpy()[None]).within(0.0, 1.0)
    found = {
        "condition": "passage",
        "family": "text",
        "metric": "probability of a token",
        "score": values.mean(),
        "score_lower": ends.lower[0],
        "score_upper": ends.upper[0],
        "score_interval": ONE_TEXT if len(values) == 1 else TEXT,
        "n": 1,
        "seeds": len(values),
        **_UNDEFINED,
    }
    if trains:
        values, full = values[own["seed"].isin(full["seed"])], full[full["seed"].isin(own["seed"])]
    if values.empty:
        return found
    above, below = values.to_numpy(), np.exp(full["value"].to_numpy())
    own_scores = above if trains else np.full_like(below, above.mean())
    ratio = ratio_intervals(own_scores[None], below[None]).within(0.0)
    return found | {
        "retention": above.mean() / below.mean(),
        "lower": ratio.lower[0],
        "upper": ratio.upper[0],
        "interval": ONE_TEXT if len(below) == 1 else TEXT,
    }
