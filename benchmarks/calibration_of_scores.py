"""Measure how often the intervals of benchmark scores that are no plain accuracy cover the true score.

    python -m benchmarks.calibration_of_scores            # minutes on one core
    python -m benchmarks.calibration_of_scores --quick    # a minute, with few trials

Each trial draws the rates of a model from a range, then its answers about so many pictures, which differ in how hard
they are. The truth is the score of that model on infinitely many pictures. The mean of three F1 (POPE) is tried for
models that say no to nearly all, are weak, good, nearly perfect, and that say yes to all; the points of ten categories
(MME); and means of CIDEr. The interval before, a Student interval of the linearised score, is measured on the same
answers.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from benchmarks.calibration import Line, covered, line
from benchmarks.record import heading, machine, simulation, table, write_record
from records.evaluation.intervals import influence, score_estimate, variance_of
from records.intervals import quantile
from tasks.benchmarks.layout.scores import Item, Scores

PICTURES = (4, 8, 16, 40, 100)
TRIALS = 1000
SPREAD = 0.6  # standard deviation of the pictures' difficulty, where that of a question is 1
QUESTIONS = 2  # about present objects for each picture and category, and as many about absent ones
# Ranges of the shares of yes to present and to absent objects.
RATES = {
    "no to nearly all": ((0.02, 0.1), (0.0, 0.03)),
    "weak": ((0.3, 0.6), (0.1, 0.3)),
    "good": ((0.75, 0.92), (0.03, 0.2)),
    "nearly perfect": ((0.97, 0.999), (0.001, 0.02)),
    "yes to all": ((0.95, 0.999), (0.8, 0.99)),
}
_CATEGORIES = 3
_Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Scores, float]]


def draw_f1(rates: tuple[tuple[float, float], tuple[float, float]]) -> Draw:
    """Answers to POPE's questions in three categories, with the true mean of three F1."""

    def draw(rng: np.random.Generator, pictures: int) -> tuple[Scores, float]:
        present = np.full(_CATEGORIES, rng.uniform(*rates[0]))  # the same objects are present in all categories
        absent = rng.uniform(*rates[1], _CATEGORIES)
        items = []
        for rate, wanted in ((present, 1.0), (absent, 0.0)):
            own = _rates(rate, rng.normal(size=(pictures, 1)))[:, None]
            said = (rng.random((pictures, QUESTIONS, _CATEGORIES)) < own).astype(float)
            for (picture, _, c), yes in np.ndenumerate(said):
                items.append(Item(str(c), 2 * yes * wanted, yes + wanted, str(picture)))
        truth = 100 * float((2 * present / (present + absent + 1)).mean())
        return Scores(tuple(items), {str(c): 100 / _CATEGORIES for c in range(_CATEGORIES)}), truth

    return draw


def draw_mme(low: float, high: float) -> Draw:
    """Answers to two questions about each of so many pictures of ten categories, with the true points."""

    def draw(rng: np.random.Generator, pictures: int) -> tuple[Scores, float]:
        rates = rng.uniform(low, high, 10)
        items = [
            Item(str(c), float(ok) + float(pair.all()), 2.0, f"{c} {picture}")
            for c, rate in enumerate(rates)
            for picture in range(pictures)
            for pair in [rng.random(2) < rate]
            for ok in pair
        ]
        truth = 100 * float((rates + rates**2).sum())
        return Scores(tuple(items), {str(c): 200.0 for c in range(10)}), truth

    return draw


def draw_cider(rng: np.random.Generator, pictures: int) -> tuple[Scores, float]:
    """CIDEr of captions: skewed, about 1 of 10 at most."""
    mean = float(rng.uniform(0.3, 1.3))
    values = np.minimum(rng.gamma(1.5, mean / 1.5, pictures), 10.0)  # at a mean of 1.3 this cuts 1 in 30,000
    return Scores(tuple(Item("all", float(v), 10.0, str(i)) for i, v in enumerate(values)), {"all": 1000.0}), 100 * mean


REGIMES: dict[str, Draw] = {
    **{f"mean of three F1, {name}": draw_f1(rates) for name, rates in RATES.items()},
    "points of ten categories, 0.5 to 0.9": draw_mme(0.5, 0.9),
    "points of ten categories, 0.95 to 1": draw_mme(0.95, 1.0),
    "mean CIDEr": draw_cider,
}


def before(scores: Scores) -> tuple[float, float]:
    """The Student interval of the linearised score; NaN where nothing varies."""
    moved = influence(scores)
    half = float(quantile(len(moved) - 1)) * variance_of(moved) ** 0.5
    main = scores.main or 0.0
    return (main - half, main + half) if half > 1e-9 else (np.nan, np.nan)


def measure(regime: str, pictures: int, trials: int) -> list[Line]:
    """The coverage of both intervals, how often there is none, and how often the one before leaves the range."""
    rng = np.random.default_rng([len(regime), pictures])
    ends: dict[str, list[tuple[float, float]]] = {"score": [], "before": []}
    truths, outside = [], []
    for _ in range(trials):
        scores, truth = REGIMES[regime](rng, pictures)
        found = score_estimate(scores)
        assert found is not None
        ends["score"].append((found.lower, found.upper))
        ends["before"].append(before(scores))
        truths.append(truth)
        outside.append(ends["before"][-1][0] < 0 or ends["before"][-1][1] > scores.highest)
    what = f"{regime}, {pictures} pictures"
    lines = []
    for name, pairs in ends.items():
        lower, upper = np.array(pairs).T
        lines.append(line(f"interval, {name}", what, covered(lower, upper, np.array(truths))))
    none = np.isnan(np.array(ends["before"])[:, 0])
    lines.append(Line("before: none", what, float(none.mean()), trials, (0.0, 1.0)))
    return [*lines, Line("before: beyond the range", what, float(np.mean(outside)), trials, (0.0, 1.0))]


def _rates(rate: _Array, easy: _Array) -> _Array:
    """The rates for pictures of which each is so easy; their means over pictures are ``rate``."""
    return np.asarray(norm.cdf(norm.ppf(rate) * (1 + SPREAD**2) ** 0.5 + SPREAD * easy), dtype=float)


def main() -> None:
    """Run the benchmark and write a record."""
    trials, size, out, _ = simulation(__doc__, TRIALS)
    lines = [found for regime in REGIMES for n in PICTURES for found in measure(regime, n, trials)]
    rows = [
        [regime, *(f"{100 * one.share:.1f} %" for one in lines if one.regime == regime)]
        for regime in dict.fromkeys(one.regime for one in lines)
    ]
    facts: dict[str, object] = {"trials": trials, **machine("cpu")}
    text = heading("Coverage of the 95 % intervals of benchmark scores", facts)
    text += table(("score", "covers", "before covers", "before: none", "before: beyond the range"), rows)
    record = {"machine": facts, "lines": [one.__dict__ for one in lines]}
    write_record(out, f"calibration-of-scores-{size}", record, "\n".join(text))


if __name__ == "__main__":
    main()
