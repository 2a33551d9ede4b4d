"""The evaluations of a run as a table that grows during training: ``evaluations.csv``."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.llava import Llava
from records.intervals import ratio_intervals, share_intervals
from records.manifest import commit
from records.progress import OnProgress, silent
from tasks.checksums import check_whole
from tasks.errors import UserError, user_errors
from tasks.scenes.questions import CHANCE
from tuning.data.samples import Samples
from tuning.data.scene_mix import SceneQuestions
from tuning.scoring.answers import score_answers

EVALUATIONS = "evaluations.csv"
ALL = "all"
INTERVALS = {"accuracy": "95% Wilson over pictures", "log_prob_per_token": "95% Fieller over pictures"}
_METRICS = {"accuracy": ("right", "answers"), "log_prob_per_token": ("log_prob", "tokens")}
_SUMS = ["right", "answers", "log_prob", "tokens"]
_TYPES: Any = {"set": str, "data": str, "family": str, "metric": str, "interval": str}


def score_sets(
    llava: Llava,
    sets: Mapping[str, Samples],
    *,
    step: int,
    token_plan: str = "all",
    on_progress: OnProgress = silent,
) -> dict[str, pd.DataFrame]:
    """The answers to every evaluation set by its name, from ``score_answers``.

    Raises ``UserError`` if a log-probability is not finite; the message contains ``step``.
    """
    answers = {}
    for name, samples in sets.items():
        # A bar for each evaluation, since one that is full does not start again.
        stage, total = f"scoring {name} after step {step}", len(samples)
        answers[name] = score_answers(
            llava, samples, token_plan=token_plan, on_scored=partial(_report, on_progress, stage, total)
        )
        broken = answers[name][~np.isfinite(answers[name]["log_prob"])]
        if len(broken):
            raise UserError(
                f"log-probability must be finite, got {broken['log_prob'].iloc[0]} for an answer of "
                f"{broken['id'].iloc[0]!r} in set {name!r} after step {step}. Look at that sample, or lower --lr."
            )
    return answers


def _report(on_progress: OnProgress, stage: str, total: int, n: int) -> None:
    on_progress(stage, n, total)


def tabulate(
    answers: pd.DataFrame, *, step: int, name: str, data: str = "", chance: Mapping[Any, float] | None = None
) -> pd.DataFrame:
    """One row for each question family and metric of an evaluation; family ``all`` holds all answers.

    Columns: ``step, set, data, family, metric, score, lower, upper, chance, n, interval``. Metric ``accuracy`` is the
    share of right answers; ``log_prob_per_token`` is in nats. ``n`` is the number of pictures (samples, if there are no
    pictures): answers about one picture count as dependent. ``interval`` names the method.

    ``answers`` has ``group, family, right, log_prob, tokens``. ``data`` is a digest of the questions, ``chance`` the
    share of right answers of a random guess by family, where it is known.
    """
    guess = chance or {}
    counted = answers.assign(answers=1.0, chance=[guess.get(str(family), np.nan) for family in answers["family"]])
    rows = []
    for family in [*filter(None, answers["family"].unique()), ALL]:
        chosen = counted if family == ALL else counted[counted["family"] == family]
        sums = chosen.groupby("group", sort=False)[_SUMS].sum()
        guessed = float(chosen["chance"].mean(skipna=False))
        for metric, (above, below) in _METRICS.items():
            parts = sums[[above]].to_numpy(dtype=float).T, sums[[below]].to_numpy(dtype=float).T
            lower, upper = share_intervals(*parts) if metric == "accuracy" else ratio_intervals(*parts)
            rows.append(
                {
                    **{"step": step, "set": name, "data": data, "family": family, "metric": metric},
                    "score": float(sums[above].sum() / sums[below].sum()),
                    "lower": float(lower[0]),
                    "upper": float(upper[0]),
                    "chance": guessed if metric == "accuracy" else np.nan,
                    "n": len(sums),
                    "interval": INTERVALS[metric],
                }
            )
    return pd.DataFrame(rows)


def table_of(answers: Mapping[str, pd.DataFrame], sets: Mapping[str, Samples], *, step: int) -> pd.DataFrame:
    """The rows of all sets of an evaluation."""
    tables = []
    for name, own in answers.items():
        source = sets[name].source
        chance = CHANCE if isinstance(source, SceneQuestions) else {}
        tables.append(tabulate(own, step=step, name=name, data=source.digest, chance=chance))
    return pd.concat(tables, ignore_index=True)


def in_log(rows: pd.DataFrame) -> dict[str, float]:
    """The scores of an evaluation as entries of the log: ``set/family`` for accuracies, ``set/log_prob_per_token``."""
    kept = rows[(rows["metric"] == "accuracy") | (rows["family"] == ALL)]
    tails = kept["family"].where(kept["metric"] == "accuracy", kept["metric"])
    return dict(zip(kept["set"] + "/" + tails, map(float, kept["score"]), strict=True))


def add_rows(folder: Path, rows: pd.DataFrame) -> None:
    """Add rows to the table of a run; they replace rows of the same set and step, or of the same set on other data."""
    old = _read(folder)
    if old is not None:
        data = dict(zip(rows["set"], rows["data"], strict=True))
        again = old["set"].isin(list(data)) & ((old["data"] != old["set"].map(data)) | old["step"].isin(rows["step"]))
        rows = pd.concat([old[~again], rows], ignore_index=True) if not again.all() else rows
    commit(folder / EVALUATIONS, rows.to_csv(index=False).encode())


def trim_rows(folder: Path, step: int) -> None:
    """Drop the rows after ``step``, which a resumed run computes again."""
    old = _read(folder)
    kept = None if old is None else old[old["step"] <= step]
    if kept is None or kept.empty:
        (folder / EVALUATIONS).unlink(missing_ok=True)
    else:
        commit(folder / EVALUATIONS, kept.to_csv(index=False).encode())


def _read(folder: Path) -> pd.DataFrame | None:
    path = folder / EVALUATIONS
    if not path.is_file():
        return None
    check_whole(path, advice="Remove it, and the checkpoints, to train anew.")
    with user_errors(ValueError):
        return pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values={"chance": [""]})
