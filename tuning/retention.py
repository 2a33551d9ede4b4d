"""Scores of several plans side by side: accuracy and retention by condition and question family, with intervals.

Retention is a plan's accuracy over full tuning's with the same seeds. Both are resampled together, by scene and by
seed, so that what is hard for both cancels; the interval says how far the ratio could lie from what these scenes and
seeds show.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
# What was resampled for the interval of retention
INTERVAL = "percentile bootstrap over scenes and seeds, paired with full"
ONE_SEED = "percentile bootstrap over scenes, paired with full"
UNTRAINED = "percentile bootstrap over scenes, paired with full, and over full's seeds"
RANGE = "range over seeds"
NO_PAIR = "none: no seed is shared with full"
_CHANCE_FREE = 1e-9


class Interval(NamedTuple):
    """A percentile interval."""

    lower: float
    upper: float


_UNKNOWN = Interval(np.nan, np.nan)


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
    chance: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row for each plan, condition and family.

    Args:
        answers: ``plan, seed, condition, id, family, right``: one row an answer.
        words: ``plan, seed, value``: mean log-likelihood in nats of a token of ordinary text.
        full: The plan that the others are compared with.
        untrained: Plans that train nothing: their seed says nothing, so they are compared with the mean over all seeds
            of ``full``.
        chance: Share of right answers of a guess by family, where it is known.
        seed: Of the bootstrap.

    Returns:
        Columns ``plan, condition, family, metric, score, score_lower, score_upper, chance, retention, lower, upper, n,
        seeds, interval``. Family ``all`` is the mean over answers. Condition ``passage`` holds the probability that
        the model gives a token of ordinary text on average (the exponential of ``value``), without an interval over
        scenes.

        ``score`` with its interval and ``seeds`` are over all seeds of the plan. ``retention``, ``lower`` and ``upper``
        are over the seeds that the plan and ``full`` share, for both; ``interval`` says what was resampled for them. So
        the retention of a plan with fewer seeds than ``full`` is not its score over the score of ``full`` in this
        table. Retention is NaN where no seed is shared, and where full tuning scores 0.
    """
    rows: list[dict[str, object]] = []
    for condition in dict.fromkeys(map(str, answers["condition"])):
        part = answers[answers["condition"] == condition]
        for family in [*dict.fromkeys(map(str, part["family"])), "all"]:
            chosen = part if family == "all" else part[part["family"] == family]
            guessed = float(np.mean([(chance or {}).get(str(name), np.nan) for name in chosen["family"]]))
            grids = {str(plan): _grid(group) for plan, group in chosen.groupby("plan", sort=False)}
            for plan, grid in grids.items():
                found = _compare(grid, grids[full], np.random.default_rng(seed), trains=plan not in untrained)
                rows.append(
                    {
                        "plan": plan,
                        "condition": condition,
                        "family": family,
                        "metric": "accuracy",
                        "score": float(grid.to_numpy().mean()),
                        "score_lower": found.score.lower,
                        "score_upper": found.score.upper,
                        "chance": guessed,
                        "retention": found.retention,
                        "lower": found.ratio.lower,
                        "upper": found.ratio.upper,
                        "n": grid.shape[1],
                        "seeds": grid.shape[0],
                        "interval": found.name,
                    }
                )
    whole = words[words["plan"] == full]
    for name in dict.fromkeys(map(str, words["plan"])):
        rows.append(_passage(name, words[words["plan"] == name], whole, trains=name not in untrained))
    return pd.DataFrame(rows)


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


def _grid(group: pd.DataFrame) -> pd.DataFrame:
    """Mean score by seed and scene; answers about one scene are one unit."""
    return group.pivot_table(index="seed", columns="id", values="right", aggfunc="mean", sort=True).astype(float)


def _compare(own: pd.DataFrame, full: pd.DataFrame, rng: np.random.Generator, *, trains: bool) -> _Compared:
    """The score's interval over all own seeds; retention over the seeds that both have, resampled as pairs."""
    scenes = rng.integers(own.shape[1], size=(DRAWS, own.shape[1]))
    seeds = rng.integers(own.shape[0], size=(DRAWS, own.shape[0]))
    scores = _means(own.to_numpy(), seeds, scenes)
    mine, whole = (_shared(own, full), _shared(full, own)) if trains else (own, full)
    if mine.empty:
        return _Compared(_percentiles(scores), np.nan, _UNKNOWN, NO_PAIR)
    drawn = seeds if len(mine) == len(own) else rng.integers(len(mine), size=(DRAWS, len(mine)))
    others = drawn if trains else rng.integers(len(whole), size=(DRAWS, len(whole)))
    above = scores if mine is own else _means(mine.to_numpy(), drawn, scenes)
    below = _means(whole.to_numpy(), others, scenes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(below > _CHANCE_FREE, above / below, np.nan)
    base = float(whole.to_numpy().mean())
    retention = float(mine.to_numpy().mean()) / base if base > _CHANCE_FREE else np.nan
    name = ONE_SEED if len(whole) == 1 else INTERVAL if trains else UNTRAINED
    return _Compared(_percentiles(scores), retention, _percentiles(ratios[~np.isnan(ratios)]), name)


def _shared(grid: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The rows of seeds that ``other`` has, too."""
    both = grid.index.isin(other.index)
    return grid if both.all() else grid[both]


def _means(grid: NDArray[np.float64], seeds: NDArray[np.int64], scenes: NDArray[np.int64]) -> NDArray[np.float64]:
    by_seed = np.stack([grid[:, drawn].mean(1) for drawn in scenes])  # draw x seed
    return np.asarray(np.take_along_axis(by_seed, seeds, axis=1).mean(1), dtype=float)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    if not len(values):
        return _UNKNOWN
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
