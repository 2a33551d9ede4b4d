"""Scores of several plans side by side: accuracy and retention by condition and question family, with intervals.

Retention is a plan's accuracy divided by that of full tuning with the same seeds. Both are resampled together, by scene
and by seed, so that difficulty common to both cancels. The interval covers the variation over scenes and seeds.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

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
DIFFERENCES = ["plan", "condition", "family", "difference", "lower", "upper", "n", "seeds"]
_CHANCE_FREE = 1e-9


class Interval(NamedTuple):
    """A percentile interval."""

    lower: float
    upper: float


_UNKNOWN = Interval(np.nan, np.nan)


class _Grid(NamedTuple):
    """Right answers by seed and id, and how many answers each id has; answers about one scene are one unit."""

    right: pd.DataFrame
    asked: NDArray[np.float64]

    def shared(self, other: "_Grid") -> "_Grid":
        """The rows of seeds that ``other`` has, too."""
        both = self.right.index.isin(other.right.index)
        return self if both.all() else self._replace(right=self.right[both])

    def score(self) -> float:
        """Share of right answers, mean over seeds."""
        return float((self.right.to_numpy().sum(1) / self.asked.sum()).mean())

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Seeds and ids of each draw."""
        scenes = draw_indices(len(self.asked), draws=DRAWS, generator=rng)
        return draw_indices(len(self.right), draws=DRAWS, generator=rng), scenes

    def scores(self, seeds: NDArray[np.int64], scenes: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same of each draw of seeds and ids."""
        right = self.right.to_numpy()
        by_seed = np.stack([right[:, drawn].sum(1) / self.asked[drawn].sum() for drawn in scenes])  # draw x seed
        return np.asarray(np.take_along_axis(by_seed, seeds, axis=1).mean(1), dtype=float)


class _Compared(NamedTuple):
    """The interval of a score, and its ratio to full tuning's with the name of the ratio's interval."""

    score: Interval
    retention: float
    ratio: Interval
    name: str


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
        answers: ``plan, seed, condition, id, family, right``: one row per answer. Answers of one ``id`` are drawn
            together; those without a family are in ``all`` alone.
        words: ``plan, seed, value``: mean log-likelihood in nats of a token of ordinary text.
        full: The plan that the others are compared with.
        untrained: Plans that train nothing: their seed has no effect, so they are compared with the mean over all seeds
            of ``full``.
        chance: Share of right answers of a guess by condition and family, where it is known.
        seed: Of the bootstrap.

    Returns:
        Columns ``plan, condition, family, metric, score, score_lower, score_upper, chance, retention, lower, upper, n,
        seeds, interval``. Family ``all`` is the mean over answers. Condition ``passage`` holds the probability that
        the model gives a token of ordinary text on average (the exponential of ``value``), without an interval over
        scenes.

        ``score`` with its interval and ``seeds`` are over all seeds of the plan. ``retention``, ``lower`` and ``upper``
        are over the seeds that the plan and ``full`` share, for both; ``interval`` is what was resampled for them. So
        the retention of a plan with fewer seeds than ``full`` is not its score over the score of ``full`` in this
        table. Retention is NaN where no seed is shared, and where full tuning scores 0.
    """
    rows: list[dict[str, object]] = []
    for condition, family, chosen in _parts(answers):
        known = (chance or {}).get(condition, {})
        guessed = float(np.mean([known.get(str(name), np.nan) for name in chosen["family"]]))
        grids = {str(plan): _grid(group) for plan, group in chosen.groupby("plan", sort=False)}
        for plan, grid in grids.items():
            found = _compare(grid, grids[full], np.random.default_rng(seed), trains=plan not in untrained)
            rows.append(
                {
                    "plan": plan,
                    "condition": condition,
                    "family": family,
                    "metric": "accuracy",
                    "score": grid.score(),
                    "score_lower": found.score.lower,
                    "score_upper": found.score.upper,
                    "chance": guessed,
                    "retention": found.retention,
                    "lower": found.ratio.lower,
                    "upper": found.ratio.upper,
                    "n": len(grid.asked),
                    "seeds": len(grid.right),
                    "interval": found.name,
                }
            )
    whole = words[words["plan"] == full]
    for name in dict.fromkeys(map(str, words["plan"])):
        rows.append(_passage(name, words[words["plan"] == name], whole, trains=name not in untrained))
    return pd.DataFrame(rows)


def differences(answers: pd.DataFrame, plan: str, *, untrained: Collection[str] = (), seed: int = 0) -> pd.DataFrame:
    """How much better a plan answers than each other one, paired by scene and seed.

    Args:
        answers: As for ``summarise``.
        plan: The plan that the others are taken from.
        untrained: Plans whose seed has no effect, as for ``summarise``; they are left out.
        seed: Of the bootstrap.

    Returns:
        One row for each other plan, condition and family: ``plan, condition, family, difference, lower, upper, n,
        seeds``. ``difference`` is the score of ``plan`` minus that of the row's plan over the seeds that both have, in
        shares of right answers; ``lower`` and ``upper`` are the 95 % percentile bootstrap over scenes and these seeds,
        drawn together for both. Plans that share no seed with it are left out.

    Raises:
        UserError: If there are no answers of ``plan``, or plans were not asked the same.
    """
    answers = answers[~answers["plan"].isin(list(untrained))]
    if not (answers["plan"] == plan).any():
        raise UserError(f"plan must be one of {', '.join(answers['plan'].unique())}, got {plan!r}.")
    rows: list[dict[str, object]] = []
    for condition, family, chosen in _parts(answers):
        grids = {str(name): _grid(group) for name, group in chosen.groupby("plan", sort=False)}
        for name, grid in grids.items():
            mine, other = grids[plan].shared(grid), grid.shared(grids[plan])
            if name == plan or mine.right.empty:
                continue
            _check_same(mine, other)
            seeds, scenes = mine.draw(np.random.default_rng(seed))
            apart = _percentiles(mine.scores(seeds, scenes) - other.scores(seeds, scenes))
            rows.append(
                {
                    "plan": name,
                    "condition": condition,
                    "family": family,
                    "difference": mine.score() - other.score(),
                    "lower": apart.lower,
                    "upper": apart.upper,
                    "n": len(mine.asked),
                    "seeds": len(mine.right),
                }
            )
    return pd.DataFrame(rows, columns=DIFFERENCES)


def _parts(answers: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The answers of each condition and family, ``all`` last."""
    for condition in dict.fromkeys(map(str, answers["condition"])):
        part = answers[answers["condition"] == condition]
        for family in dict.fromkeys(map(str, part["family"])):
            if family:
                yield condition, family, part[part["family"] == family]
        yield condition, "all", part


def _passage(plan: str, own: pd.DataFrame, full: pd.DataFrame, *, trains: bool) -> dict[str, object]:
    """The row of ordinary text; the range of retention is that of the plan's shared seeds over the mean of full's."""
    values = np.exp(own["value"].to_numpy(dtype=float))
    if trains:
        own, full = own[own["seed"].isin(full["seed"])], full[full["seed"].isin(own["seed"])]
    retention, ratio = np.nan, _UNKNOWN
    if len(own):
        mine, base = np.exp(own["value"].to_numpy(dtype=float)), float(np.exp(full["value"]).mean())
        retention = float(mine.mean()) / base
        ratio = Interval(float(mine.min()) / base, float(mine.max()) / base)
    return {
        "plan": plan,
        "condition": "passage",
        "family": "text",
        "metric": "probability of a token",
        "score": float(values.mean()),
        "score_lower": float(values.min()),
        "score_upper": float(values.max()),
        "chance": np.nan,
        "retention": retention,
        "lower": ratio.lower,
        "upper": ratio.upper,
        "n": 1,
        "seeds": len(values),
        "interval": RANGE if len(own) else NO_PAIR,
    }


def _grid(group: pd.DataFrame) -> _Grid:
    by_seed = group.groupby(["seed", "id"], sort=True)["right"]
    right, asked = by_seed.sum().unstack().astype(float), by_seed.count().unstack()
    if (asked != asked.iloc[0]).any(axis=None):
        raise UserError(f"every seed of a plan must be asked the same, got others in {group['condition'].iloc[0]!r}.")
    return _Grid(right, asked.iloc[0].to_numpy(dtype=float))


def _check_same(own: _Grid, other: _Grid) -> None:
    if not own.right.columns.equals(other.right.columns) or (own.asked != other.asked).any():
        raise UserError(
            "plans must be asked the same to be compared, got answers about other things. Score them again."
        )


def _compare(own: _Grid, full: _Grid, rng: np.random.Generator, *, trains: bool) -> _Compared:
    """The score's interval over all own seeds; retention over the seeds that both have, resampled as pairs."""
    _check_same(own, full)
    seeds, scenes = own.draw(rng)
    scores = own.scores(seeds, scenes)
    mine, whole = (own.shared(full), full.shared(own)) if trains else (own, full)
    if mine.right.empty:
        return _Compared(_percentiles(scores), np.nan, _UNKNOWN, NO_PAIR)
    drawn = seeds if len(mine.right) == len(own.right) else draw_indices(len(mine.right), draws=DRAWS, generator=rng)
    others = drawn if trains else draw_indices(len(whole.right), draws=DRAWS, generator=rng)
    above = scores if mine is own else mine.scores(drawn, scenes)
    below = whole.scores(others, scenes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(below > _CHANCE_FREE, above / below, np.nan)
    base = whole.score()
    retention = mine.score() / base if base > _CHANCE_FREE else np.nan
    name = ONE_SEED if len(whole.right) == 1 else INTERVAL if trains else UNTRAINED
    return _Compared(_percentiles(scores), retention, _percentiles(ratios[~np.isnan(ratios)]), name)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    if not len(values):
        return _UNKNOWN
    return Interval(*map(float, percentile_interval(values)))
