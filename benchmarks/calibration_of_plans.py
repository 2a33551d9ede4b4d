"""Measure how often the intervals of ``inference-cost``'s ``kept`` and ``difference`` cover the truth.

    python -m benchmarks.calibration_of_plans            # minutes on one core
    python -m benchmarks.calibration_of_plans --quick    # half a minute, with few trials

Each trial draws the accuracy of the full model, the share of all answers that a token plan loses and the share that it
gains, then right and wrong answers about so many pictures. The truth is the ratio and the difference of the two
accuracies over infinitely many pictures. The intervals before (Fieller's and Student's, without added units) are
measured on the same answers. Trials without an interval do not count in coverage; their share is reported. The aim is
92 to 98 %. Where fewer than about four answers are expected to differ, the intervals are wider than need be (cautious),
since an answer that was not seen may be a gain or a loss.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.calibration import Line, covered, line
from benchmarks.record import heading, machine, simulation, table, write_record
from records.intervals import paired_share_intervals, ratio_intervals

TRIALS = 1000
_NOW = ("kept", "difference")
Ends = tuple[float, float]


@dataclass(frozen=True)
class Answering:
    """Ranges of what the full model gets right and what a plan changes, as shares of all answers."""

    pictures: int
    accuracy: Ends
    lost: Ends
    gained: Ends = (0.0, 0.0)
    questions: int = 1
    """About each picture; in half of the pictures all of them are answered alike."""


_HIGH, _MIDDLE = (0.85, 0.95), (0.4, 0.6)
REGIMES = {
    **{
        f"accuracy exactly 0.9, exactly 3 % lost, {n} pictures": Answering(n, (0.9, 0.9), (0.03, 0.03))
        for n in (40, 100, 300)
    },
    **{f"accuracy 0.9, 3 % lost, {n} pictures": Answering(n, _HIGH, (0.02, 0.04)) for n in (40, 100, 300)},
    **{
        f"accuracy {middle}, 15 % lost, 3 % gained, {n} pictures": Answering(n, ends, (0.1, 0.2), (0.02, 0.04))
        for middle, ends in ((0.9, _HIGH), (0.5, _MIDDLE)) for n in (20, 40, 100, 300)
    },
    "accuracy 0.9, 3 % lost, 2 % gained, 100 pictures": Answering(100, _HIGH, (0.02, 0.04), (0.01, 0.03)),
    "accuracy 0.5, 3 % lost, 100 pictures": Answering(100, _MIDDLE, (0.02, 0.04)),
    "accuracy 0.9, 3 % lost, 100 pictures, 3 questions each": Answering(100, _HIGH, (0.02, 0.04), questions=3),
    "accuracy 0.9, 15 % lost, 3 % gained, 40 pictures, 3 questions each": Answering(
        40, _HIGH, (0.1, 0.2), (0.02, 0.04), 3
    ),
}  # fmt: skip


def draw(made: Answering, rng: np.random.Generator) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], Ends]:
    """Right answers of the full model and of a plan, ``picture question``, with the true ratio and difference."""
    accuracy, lost, gained = (float(rng.uniform(*ends)) for ends in (made.accuracy, made.lost, made.gained))

    def uniform() -> npt.NDArray[np.float64]:
        alike = rng.random((made.pictures, 1)) < (0.5 if made.questions > 1 else 0.0)
        each = rng.random((made.pictures, made.questions))
        return np.where(alike, rng.random((made.pictures, 1)), each)

    full = uniform() < accuracy
    changed = uniform()
    own = np.where(full, changed >= lost / accuracy, changed < gained / (1 - accuracy))
    return full, own, (1 + (gained - lost) / accuracy, gained - lost)


def measure(regime: str, trials: int) -> list[Line]:
    """The coverage of both intervals and of those before, each with the share of trials that have none."""
    rng = np.random.default_rng([len(regime), REGIMES[regime].pictures])
    ends: dict[str, list[Ends]] = {"kept": [], "difference": [], "kept, before": [], "difference, before": []}
    truths: dict[str, list[float]] = {"kept": [], "difference": []}
    for _ in range(trials):
        full, own, true = draw(REGIMES[regime], rng)
        above, below, asked = (x.sum(1)[None].astype(float) for x in (own, full, np.ones_like(full)))
        plain = ratio_intervals(above, below).within(0.0), ratio_intervals(above - below, asked)
        for name, truth, old in zip(truths, true, plain, strict=True):
            found = paired_share_intervals(above, below, asked[0], ratio=name == "kept")
            ends[name].append((found.lower.item(), found.upper.item()))
            ends[f"{name}, before"].append((old.lower.item(), old.upper.item()))
            truths[name].append(truth)
    lines = []
    for name, pairs in ends.items():
        lower, upper = np.array(pairs).T
        hits = covered(lower, upper, np.array(truths[name.partition(",")[0]]))
        lines += [line(name, regime, hits), Line(f"{name}: none", regime, float(np.isnan(hits).mean()), trials, (0, 1))]
    return lines


def main() -> None:
    """Run the benchmark and write a record."""
    trials, size, out, _ = simulation(__doc__, TRIALS)
    lines = [found for regime in REGIMES for found in measure(regime, trials)]
    rows = []
    for regime in REGIMES:
        shares = {one.what: one for one in lines if one.regime == regime}
        verdicts = {what: f" ({found.verdict})" if what in _NOW else "" for what, found in shares.items()}
        rows.append([regime, *(f"{100 * found.share:.1f} %{verdicts[what]}" for what, found in shares.items())])
    facts: dict[str, object] = {"trials": trials, **machine("cpu")}
    text = heading("Coverage of the 95 % intervals of what token plans keep", facts)
    text += table(("answers", *dict.fromkeys(one.what for one in lines)), rows)
    text += ["", __doc__.split("\n\n")[2].strip()]
    record = {"machine": facts, "lines": [one.__dict__ for one in lines]}
    write_record(out, f"calibration-of-plans-{size}", record, "\n".join(text))


if __name__ == "__main__":
    main()
