"""What the evaluations of a run found, as a table that grows while it trains: ``evaluations.csv``.

``evaluate_sets`` makes the rows of one evaluation; ``add_rows`` writes them, ``trim_rows`` forgets what an interrupted
run found after its checkpoint.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from models.llava import Llava
from records.manifest import write_atomically
from tuning.data import Samples
from tuning.evaluate import score_answers

EVALUATIONS = "evaluations.csv"
INTERVAL = "95% percentile bootstrap over samples"
_DRAWS = 2000  # the ends of a 95 % interval then rest on 50 draws each
_METRICS = {"accuracy": ("right", "answers"), "log_prob_per_token": ("log_prob", "tokens")}


def evaluate_sets(
    llava: Llava, sets: Mapping[str, Samples], *, step: int, model: nn.Module | None = None
) -> pd.DataFrame:
    """The rows of all evaluation sets, as ``tabulate`` makes them.

    Args:
        llava: As of now.
        sets: Samples by name.
        step: Optimizer steps done.
        model: What runs in its place: the same model, spread over processes.
    """
    answers = {name: score_answers(llava, samples, model=model) for name, samples in sets.items()}
    return pd.concat([tabulate(own, step=step, name=name) for name, own in answers.items()], ignore_index=True)


def tabulate(answers: pd.DataFrame, *, step: int, name: str, seed: int = 0) -> pd.DataFrame:
    """One row for each question family and metric of an evaluation; family ``all`` is all answers together.

    Args:
        answers: Of ``tuning.evaluate.score_answers``: ``id, family, right, log_prob, tokens``.
        step: Optimizer steps done.
        name: Of the evaluation set.
        seed: Of the bootstrap.

    Returns:
        ``step, set, family, metric, score, lower, upper, n, interval``. Metric ``accuracy`` is the share of right
        answers, ``log_prob_per_token`` is in nats; ``n`` counts samples, which are drawn with all their answers.
    """
    rows = []
    for family in [*dict.fromkeys(map(str, answers["family"])), "all"]:
        chosen = answers if family == "all" else answers[answers["family"] == family]
        sums = chosen.assign(answers=1.0).groupby("id", sort=False)[["right", "answers", "log_prob", "tokens"]].sum()
        n = len(sums)
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_DRAWS).astype(float)
        for metric, columns in _METRICS.items():
            above, below = (sums[column].to_numpy(dtype=float) for column in columns)
            lower, upper = np.percentile((counts @ above) / (counts @ below), [2.5, 97.5])
            rows.append(
                {
                    "step": step,
                    "set": name,
                    "family": family,
                    "metric": metric,
                    "score": float(above.sum() / below.sum()),
                    "lower": float(lower),
                    "upper": float(upper),
                    "n": n,
                    "interval": INTERVAL,
                }
            )
    return pd.DataFrame(rows)


def in_log(rows: pd.DataFrame) -> dict[str, float]:
    """An evaluation as a line of the log has it: ``set/family`` for accuracies, and ``set/log_prob_per_token``."""
    kept = rows[(rows["metric"] == "accuracy") | (rows["family"] == "all")]
    tails = kept["family"].where(kept["metric"] == "accuracy", kept["metric"])
    return dict(zip(kept["set"] + "/" + tails, map(float, kept["score"]), strict=True))


def add_rows(folder: Path, rows: pd.DataFrame) -> None:
    """Adds rows to the table of a run, in place of older ones of the same steps and sets."""
    path = folder / EVALUATIONS
    if path.is_file():
        old = pd.read_csv(path, keep_default_na=False)  # a family may be called "None"
        again = pd.MultiIndex.from_frame(old[["step", "set"]]).isin(pd.MultiIndex.from_frame(rows[["step", "set"]]))
        rows = pd.concat([old[~again], rows], ignore_index=True)
    write_atomically(path, rows.to_csv(index=False).encode())


def trim_rows(folder: Path, step: int) -> None:
    """Drops what was found after ``step``: it is found again."""
    path = folder / EVALUATIONS
    if path.is_file():
        old = pd.read_csv(path, keep_default_na=False)
        write_atomically(path, old[old["step"] <= step].to_csv(index=False).encode())
