"""The results of ``benchmark-eval``: a row for each number of each benchmark, the main score first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from records.evaluation.intervals import NONE, Estimate, score_estimate
from tasks.benchmarks.layout.scores import OFFICIAL, Scores

MAIN = "main"
COLUMNS = (
    "model", "benchmark", "metric", "part", "rule", "score", "lower", "upper", "interval", "n", "n_groups",
    "token_plan", "unlike_published", "notes",
)  # fmt: skip


def tabulate(
    scores: Mapping[str, Scores],
    notes: Mapping[str, Sequence[str]],
    *,
    n: Mapping[str, int],
    model: str,
    token_plan: str,
    unlike: Mapping[str, str],
) -> pd.DataFrame:
    """The table of a run; ``docs/results.md`` describes its columns.

    The first row of a benchmark has the metric ``main``: the score as papers report it, NaN where only a server or a
    judge gives it, with its interval. Its rule names the judge that graded.

    Args:
        scores: By benchmark.
        notes: Sentences about a benchmark's score, besides those of the scores.
        n: Number of questions that were asked, by benchmark.
        model: The model's name.
        token_plan: The token plan that the answers were generated under.
        unlike: Why published scores are not comparable, by benchmark; empty if nothing speaks against it.
    """
    rows: list[dict[str, Any]] = []
    for name, own in scores.items():
        told = "; ".join([*notes.get(name, ()), *own.notes])
        about = {
            "model": model, "benchmark": name, "token_plan": token_plan, "unlike_published": unlike[name],
            "notes": told,
        }  # fmt: skip
        found = score_estimate(own) or Estimate(np.nan, np.nan, np.nan, 0, NONE)
        rule = own.metrics[0].rule if own.metrics else OFFICIAL
        rows.append(
            {
                **about, "metric": MAIN, "part": "all", "rule": rule, "n": len(own.items) or n[name],
                "score": found.value, "lower": found.lower, "upper": found.upper, "interval": found.interval,
                "n_groups": found.n_groups,
            }
        )  # fmt: skip
        rows += [
            {
                **about, "metric": metric.name, "part": metric.part, "rule": metric.rule, "score": metric.value,
                "lower": np.nan, "upper": np.nan, "interval": NONE, "n": metric.n, "n_groups": 0,
            }
            for metric in own.metrics
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
