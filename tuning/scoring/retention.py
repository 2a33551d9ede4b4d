"""Scores of several plans side by side: accuracy and retention by condition and question family, with intervals.

Retention is a plan's accuracy divided by that of full tuning with the same seeds. Scenes and seeds are resampled for
both plans together, so that a difficulty common to both cancels.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from records.resampling import DRAWS, draw_indices, percentile_interval
from tasks.errors import UserError

# What was resampled for the interval of retention
INTERVAL = "percentile bootstrap over scenes and seeds, paired with full"
ONE_SEED = "percentile bootstrap over scenes, paired with full"
UNTRAINED = "percentile bootstrap over scenes, paired with full, and over full's seeds"
RANGE = "range over seeds"
NO_PAIR = "none: no seed is shared with full"
_COLUMNS = [
    "plan", "condition", "family", "metric", "score", "score_lower", "score_upper", "chance", "retention", "lower",
    "upper", "n", "seeds", "interval",
]  # fmt: skip
_DIFFERENCES = ["plan", "condition", "family", "difference", "lower", "upper", "n", "seeds"]
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

    def draw_seeds(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The seeds of each bootstrap draw."""
        return draw_indices(len(self.right), draws=DRAWS, generator=rng)

    def draw_scenes(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The ids of each bootstrap draw."""
        return draw_indices(len(self.asked), draws=DRAWS, generator=rng)

    def scores(self, seeds: NDArray[np.int64], scenes: NDArray[np.int64]) -> NDArray[np.float64]:
        """``score`` in each bootstrap draw."""
        right = self.right.to_numpy()
        by_seed = np.stack([right[:, drawn].sum(1) / self.asked[drawn].sum() for drawn in scenes])  # draw x seed
        return np.asarray(np.take_along_axis(by_seed, seeds, axis=1).mean(1), dtype=float)


def summarise(
    answers: pd.DataFrame,
    words: pd.DataFrame,
    *,
    full: str = "full",
    untrained: Collection[str] = (),
    chance: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row for each plan, condition and family.

    Args:
        answers: ``plan, seed, condition, id, family, right``: one row per answer. Answers with the same ``id`` (a scene
            or picture) are resampled together. Answers without a family count in family ``all`` only.
        words: ``plan, seed, value``: mean log-likelihood of a token of ordinary text, in nats.
        full: The plan that the others are compared with.
        untrained: Plans that train nothing. Their seed has no effect, so they are compared with all seeds of ``full``.
        chance: Share of right answers of a random guess by condition and family, where it is known.
        seed: Seed of the bootstrap.

    Returns:
        Columns ``plan, condition, family, metric, score, score_lower, score_upper, chance, retention, lower, upper, n,
        seeds, interval``. Family ``all`` holds all answers. Condition ``passage`` is ordinary text: its score is the
        exponential of ``value``, and its intervals are ranges over seeds.

        ``score``, its interval and ``seeds`` cover all seeds of the plan. ``retention``, ``lower`` and ``upper`` cover
        the seeds that the plan shares with ``full``, so with fewer seeds than ``full`` retention is not the quotient of
        the two scores in this table. ``interval`` says what was resampled. Retention is NaN if no seed is shared or
        full tuning scores 0.

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
            rows.append({"plan": plan, **cell, **_compare(own, by_plan[full], seed, trains=plan not in untrained)})
    full_words = words[words["plan"] == full]
    for name, own_words in words.groupby("plan", sort=False):
        rows.append({"plan": name, **_compare_text(own_words, full_words, trains=name not in untrained)})
    return pd.DataFrame(rows, columns=_COLUMNS)


def differences(answers: pd.DataFrame, plan: str, *, untrained: Collection[str] = (), seed: int = 0) -> pd.DataFrame:
    """The accuracy of one plan minus that of each other plan, paired by scene and seed.

    Args:
        answers: As for ``summarise``.
        plan: The plan that is compared with the others.
        untrained: Plans whose seed has no effect; they are left out.
        seed: Seed of the bootstrap.

    Returns:
        ``plan, condition, family, difference, lower, upper, n, seeds``, one row for each other plan, condition and
        family. ``difference`` is over the seeds that both plans have; ``lower`` and ``upper`` are a 95 % percentile
        bootstrap over scenes and these seeds. Plans that share no seed with ``plan`` are left out.

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
            rng = np.random.default_rng(seed)
            scenes, seeds = mine.draw_scenes(rng), mine.draw_seeds(rng)
            lower, upper = percentile_interval(mine.scores(seeds, scenes) - other.scores(seeds, scenes))
            rows.append(
                {
                    "plan": name,
                    "condition": condition,
                    "family": family,
                    "difference": mine.score() - other.score(),
                    "lower": lower,
                    "upper": upper,
                    "n": len(mine.asked),
                    "seeds": len(mine.right),
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


def _compare(own: _Answers, full: _Answers, seed: int, *, trains: bool) -> dict[str, Any]:
    """Score and retention of a plan: the score over all its seeds, retention over those that it shares with full."""
    _check_same_questions(own, full)
    rng = np.random.default_rng(seed)
    scenes, seeds = own.draw_scenes(rng), own.draw_seeds(rng)
    score_lower, score_upper = percentile_interval(own.scores(seeds, scenes))
    found = {
        "score": own.score(),
        "score_lower": score_lower,
        "score_upper": score_upper,
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
    if len(mine.right) < len(own.right):
        seeds = mine.draw_seeds(rng)
    below = whole.scores(seeds if trains else whole.draw_seeds(rng), scenes)
    ratios = np.divide(mine.scores(seeds, scenes), below, out=np.full_like(below, np.nan), where=below > 0)
    found["lower"], found["upper"] = percentile_interval(ratios)
    return found | {"retention": mine.score() / base}


def _compare_text(own: pd.DataFrame, full: pd.DataFrame, *, trains: bool) -> dict[str, Any]:
    """Score and retention of a plan on ordinary text; the intervals are ranges over seeds."""
    values = np.exp(own["value"])
    found = {
        "condition": "passage",
        "family": "text",
        "metric": "probability of a token",
        "score": values.mean(),
        "score_lower": values.min(),
        "score_upper": values.max(),
        "n": 1,
        "seeds": len(values),
        **_UNDEFINED,
    }
    if trains:
        values, full = values[own["seed"].isin(full["seed"])], full[full["seed"].isin(own["seed"])]
    if values.empty:
        return found
    base = np.exp(full["value"]).mean()
    ratios = {"retention": values.mean() / base, "lower": values.min() / base, "upper": values.max() / base}
    return found | ratios | {"interval": RANGE}
