"""Scores of several plans side by side: accuracy and retention by condition and question family, with intervals.

Retention is a plan's accuracy over full tuning's. Both are resampled together, by scene and by seed, so that what is
hard for both cancels; the interval says how far the ratio could lie from what these scenes and seeds show.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DRAWS = 2000
LEVEL = 0.95
INTERVAL = "percentile bootstrap over scenes and seeds, paired with full"
_CHANCE_FREE = 1e-9


class Interval(NamedTuple):
    """A percentile interval."""

    lower: float
    upper: float


def summarise(
    answers: pd.DataFrame,
    words: pd.DataFrame,
    *,
    full: str = "full",
    chance: Mapping[str, float] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row for each plan, condition and family.

    Args:
        answers: ``plan, seed, condition, id, family, right``: one row an answer.
        words: ``plan, seed, value``: mean log-likelihood in nats of a token of ordinary text.
        full: The plan that the others are compared with.
        chance: Share of right answers of a guess by family, where it is known.
        seed: Of the bootstrap.

    Returns:
        Columns ``plan, condition, family, metric, score, score_lower, score_upper, chance, retention, lower, upper, n,
        seeds, interval``. Family ``all`` is the mean over answers. Condition ``passage`` holds the probability that
        the model gives a token of ordinary text on average (the exponential of ``value``), without an interval over
        scenes.
        Retention is NaN where full tuning scores 0.
    """
    rows = []
    for condition in dict.fromkeys(map(str, answers["condition"])):
        part = answers[answers["condition"] == condition]
        for family in [*dict.fromkeys(map(str, part["family"])), "all"]:
            chosen = part if family == "all" else part[part["family"] == family]
            guessed = float(np.mean([(chance or {}).get(str(name), np.nan) for name in chosen["family"]]))
            grids = {str(plan): _grid(group) for plan, group in chosen.groupby("plan", sort=False)}
            for plan, grid in grids.items():
                rng = np.random.default_rng(seed)
                score, ratio = _bootstrap(grid, grids[full], rng)
                mean, whole = float(grid.to_numpy().mean()), float(grids[full].to_numpy().mean())
                rows.append(
                    {
                        "plan": plan,
                        "condition": condition,
                        "family": family,
                        "metric": "accuracy",
                        "score": mean,
                        "score_lower": score.lower,
                        "score_upper": score.upper,
                        "chance": guessed,
                        "retention": mean / whole if whole > _CHANCE_FREE else np.nan,
                        "lower": ratio.lower,
                        "upper": ratio.upper,
                        "n": grid.shape[1],
                        "seeds": grid.shape[0],
                        "interval": INTERVAL,
                    }
                )
    base = float(np.exp(words[words["plan"] == full]["value"]).mean())
    for name in dict.fromkeys(map(str, words["plan"])):
        group = words[words["plan"] == name]
        values = np.exp(group["value"].to_numpy(dtype=float))
        rows.append(
            {
                "plan": name,
                "condition": "passage",
                "family": "text",
                "metric": "probability of a token",
                "score": float(values.mean()),
                "score_lower": float(values.min()),
                "score_upper": float(values.max()),
                "chance": np.nan,
                "retention": float(values.mean()) / base,
                "lower": float(values.min()) / base,
                "upper": float(values.max()) / base,
                "n": 1,
                "seeds": len(values),
                "interval": "range over seeds",
            }
        )
    return pd.DataFrame(rows)


def _grid(group: pd.DataFrame) -> pd.DataFrame:
    """Mean score by seed and scene; answers about one scene are one unit."""
    return group.pivot_table(index="seed", columns="id", values="right", aggfunc="mean", sort=True).astype(float)


def _bootstrap(own: pd.DataFrame, full: pd.DataFrame, rng: np.random.Generator) -> tuple[Interval, Interval]:
    """Intervals of the score and of its ratio to full tuning's; seeds pair up where both have the same."""
    scenes = rng.integers(own.shape[1], size=(DRAWS, own.shape[1]))
    seeds = rng.integers(own.shape[0], size=(DRAWS, own.shape[0]))
    paired = own.index.equals(full.index)
    others = seeds if paired else rng.integers(full.shape[0], size=(DRAWS, full.shape[0]))
    mine = _means(own.to_numpy(), seeds, scenes)
    whole = _means(full.to_numpy(), others, scenes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(whole > _CHANCE_FREE, mine / whole, np.nan)
    return _percentiles(mine), _percentiles(ratios[~np.isnan(ratios)])


def _means(grid: NDArray[np.float64], seeds: NDArray[np.int64], scenes: NDArray[np.int64]) -> NDArray[np.float64]:
    by_seed = np.stack([grid[:, drawn].mean(1) for drawn in scenes])  # draw x seed
    return np.asarray(np.take_along_axis(by_seed, seeds, axis=1).mean(1), dtype=float)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    if not len(values):
        return Interval(np.nan, np.nan)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
