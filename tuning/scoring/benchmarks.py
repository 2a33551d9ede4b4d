"""Scores of plans on benchmarks, generated as ``benchmark-eval`` does, and retention with paired intervals.

A run keeps what each question adds to the score (``benchmarks.parquet``), so the table needs no question file. Scores
are those of papers; with several seeds they are means over seeds. Intervals are about other pictures and other seeds,
by the linearised score or the right answers, and pair a plan with full tuning.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray

from models.llava import Llava
from models.pixels import Preprocess
from records.evaluation.answering import answer_questions
from records.evaluation.intervals import bounded_interval, influence, right_answers, score_estimate
from records.evaluation.sources import OpenBenchmark
from records.intervals import crossed, paired_share_intervals, quantile
from tasks.benchmarks.layout.scores import Item, Scores
from tasks.errors import UserError
from tuning.scoring.retention import NO_PAIR, REFERENCE

BENCHMARKS = "benchmarks.parquet"
PREFIX = "benchmark:"
MEAN = "mean of benchmarks"
METRIC = "benchmark score"
_COLUMNS = ("benchmark", "stratum", "above", "below", "group", "weight")
_PAIRED = "95% t over pictures and seeds, linearised, paired with full"
_PAIRED_ONE = "95% t over pictures, linearised, paired with full; this seed only"
_RIGHT = "95% t over pictures and seeds, paired with full"
_RIGHT_ONE = "95% t over pictures, paired with full; this seed only"
_SCORE = "95% Wilson over pictures and seeds, linearised"
_NO_INTERVAL = "none: no picture or seed moves it"  # as where a plan scores 0, or answers as full tuning does
_ONE_PICTURE = "none: one picture"
_NO_MEAN = "none: a benchmark has none"
_Array = NDArray[np.float64]


class _Seeds(NamedTuple):
    """The scores of one plan on one benchmark, by seed, with what each picture moves them by."""

    seeds: tuple[int, ...]
    values: Float[_Array, " seed"]
    moved: Float[_Array, "seed picture"]
    scores: tuple[Scores, ...]

    def of(self, seeds: Sequence[int]) -> "_Seeds":
        """The same for some seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return _Seeds(tuple(seeds), self.values[rows], self.moved[rows], tuple(self.scores[row] for row in rows))


def score_benchmarks(
    llava: Llava,
    opened: Sequence[OpenBenchmark],
    *,
    batch_size: int,
    token_plan: str = "all",
    preprocess: Preprocess = "pad",
) -> pd.DataFrame:
    """What every question of every benchmark adds to its score: ``benchmark, stratum, above, below, group, weight``."""
    training = llava.model.training
    llava.model.eval()
    rows: list[dict[str, Any]] = []
    try:
        for one in opened:
            texts: dict[int, str] = {}
            for answers in answer_questions(
                llava, one.questions, range(len(one.questions)), batch_size=batch_size,
                new_tokens=one.benchmark.new_tokens, token_plan=token_plan, preprocess=preprocess,
            ):  # fmt: skip
                texts |= answers
            scores = one.benchmark.module.score(one.questions, [texts[index] for index in sorted(texts)])
            rows += [
                {"benchmark": one.name, **item._asdict(), "weight": scores.weights[item.stratum]}
                for item in scores.items
            ]
    finally:
        llava.model.train(training)
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def check_scored_here(opened: Sequence[OpenBenchmark]) -> None:
    """Raise ``UserError`` if a benchmark cannot be scored without a server, a judge or labels that are missing."""
    for one in opened:
        scores = one.benchmark.module.score(one.questions, [""] * len(one.questions))
        if not scores.items:
            raise UserError(f"eval must name benchmarks that can be scored here, got {one.name}: {scores.notes[0]}.")


def benchmark_rows(
    items: pd.DataFrame, *, full: str = "full", untrained: Collection[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the table by plan: one for each benchmark, and the mean of retentions if there are several.

    Args:
        items: The tables of ``score_benchmarks`` with the columns ``plan`` and ``seed``.
        full: The plan that the others are compared with.
        untrained: Plans with one seed, which are compared with all seeds of ``full``.

    Raises:
        UserError: If plans were scored on different questions.
    """
    found: dict[str, list[dict[str, Any]]] = {str(plan): [] for plan in items["plan"].unique()}
    for benchmark, chosen in items.groupby("benchmark", sort=False):
        by_plan = {str(plan): _seeds(own) for plan, own in chosen.groupby("plan", sort=False)}
        if full not in by_plan:
            raise UserError(f"plans must contain {full!r} with scores of {benchmark}, got none. Start it again.")
        for plan, own in by_plan.items():
            base = by_plan[full]
            if [(i.stratum, i.group) for i in own.scores[0].items] != [
                (i.stratum, i.group) for i in base.scores[0].items
            ]:
                raise UserError(f"plans must be scored on the same questions of {benchmark}, got others for {plan!r}.")
            row: dict[str, Any] = {
                "condition": str(benchmark),
                "family": "all",
                "metric": METRIC,
                "chance": np.nan,
                **_score(own),
            }
            kept = _reference() if plan == full else _retention(own, base, paired=plan not in untrained)
            found[plan].append(row | kept | {"n": own.moved.shape[1], "seeds": len(own.seeds)})
    for rows in found.values():
        if len(rows) > 1:
            rows.append(_mean(rows))
    return found


def _seeds(items: pd.DataFrame) -> _Seeds:
    scores = {int(str(seed)): _scores(own) for seed, own in items.groupby("seed")}
    values = np.array([own.main or 0.0 for own in scores.values()])
    return _Seeds(tuple(scores), values, np.stack([influence(own) for own in scores.values()]), tuple(scores.values()))


def _scores(items: pd.DataFrame) -> Scores:
    columns = [items[name].tolist() for name in ("stratum", "above", "below", "group")]
    weights: Mapping[str, float] = dict(zip(items["stratum"], items["weight"], strict=True))
    return Scores(tuple(Item(*values) for values in zip(*columns, strict=True)), weights)


def _score(own: _Seeds) -> dict[str, Any]:
    """The mean score over seeds with its interval."""
    value = float(own.values.mean())
    if len(own.seeds) == 1:
        found = score_estimate(own.scores[0])
        assert found is not None
        ends, name = (found.lower, found.upper), f"{found.interval}; this seed only"
    else:
        n = own.moved.shape[1]
        varied = crossed(own.values[:, None] - value + n * own.moved)
        variance = varied.variance if n > 1 else 0.0  # seeds alone say nothing about other pictures
        lower, upper = bounded_interval(
            value, own.scores[0].highest, variance, units=n, degrees=max(varied.degrees, 1.0)
        )
        ends, name = (float(lower), float(upper)), _SCORE
    return {"score": value, "score_lower": ends[0], "score_upper": ends[1], "score_interval": name}


def _retention(own: _Seeds, full: _Seeds, *, paired: bool) -> dict[str, Any]:
    """The mean score over full tuning's, on the seeds that both have."""
    if paired:
        seeds = [seed for seed in own.seeds if seed in full.seeds]
        if not seeds:
            return {
                "retention": np.nan,
                "lower": np.nan,
                "upper": np.nan,
                "interval": NO_PAIR,
            }
        own, full = own.of(seeds), full.of(seeds)
    base = float(full.values.mean())
    if not base:
        return {"retention": np.nan, "lower": np.nan, "upper": np.nan, "interval": "none: full tuning scores 0"}
    ratio = float(own.values.mean()) / base
    n = own.moved.shape[1]
    answers = [[right_answers(scores) for scores in side.scores] for side in (own, full)]
    if n > 1 and all(found is not None for side in answers for found in side):
        right, whole = (np.stack([found[0] for found in side if found is not None]) for side in answers)
        asked = next(found[1] for found in answers[0] if found is not None)
        right = np.broadcast_to(right, whole.shape)  # a plan with one seed is paired with every seed of full
        lower, upper = paired_share_intervals(right, whole, asked, ratio=True)
        name = _RIGHT if len(full.seeds) > 1 else _RIGHT_ONE
        return {"retention": ratio, "lower": lower.item(), "upper": upper.item(), "interval": name}
    residuals = (
        own.values[:, None] - ratio * full.values[:, None] + n * (own.moved - ratio * full.moved)
    ) / base  # a plan with one seed is paired with every seed of full
    half = _half(residuals)
    name = _PAIRED if len(full.seeds) > 1 else _PAIRED_ONE
    if np.isnan(half):
        name = _NO_INTERVAL if n > 1 else _ONE_PICTURE
    return {"retention": ratio, "lower": float(np.maximum(ratio - half, 0.0)), "upper": ratio + half, "interval": name}


def _reference() -> dict[str, Any]:
    return {"retention": 1.0, "lower": np.nan, "upper": np.nan, "interval": REFERENCE}


def _half(residuals: Float[_Array, "seed picture"]) -> float:
    """Half the width of a 95 % interval of the mean; NaN where nothing varies."""
    if residuals.shape[1] < 2:
        return float("nan")
    found = crossed(residuals)
    if found.variance <= 1e-24:
        return float("nan")
    return float(quantile(max(found.degrees, 1.0)) * np.sqrt(found.variance))


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the retentions; the benchmarks' pictures are independent, so the variances of their intervals add."""
    ends = np.array([[row["upper"], row["lower"]] for row in rows], dtype=float)
    # The longer side, since lower ends stop at 0
    halves = np.abs(ends - np.array([[row["retention"]] for row in rows], dtype=float)).max(1)
    value = float(np.mean([row["retention"] for row in rows]))
    half = float(np.sqrt((halves**2).sum()) / len(rows))
    name = "95%, from the intervals of the benchmarks as independent"
    if np.isnan(half):
        reasons = {str(row["interval"]) for row in rows}
        name = reasons.pop() if len(reasons) == 1 else _NO_MEAN
    return {
        "condition": MEAN, "family": "all", "metric": "mean retention", "chance": np.nan, "score": np.nan,
        "score_lower": np.nan, "score_upper": np.nan, "score_interval": "none", "retention": value,
        "lower": float(np.maximum(value - half, 0.0)), "upper": value + half, "interval": name,
        "n": int(sum(row["n"] for row in rows)), "seeds": min(row["seeds"] for row in rows),
    }  # fmt: skip
