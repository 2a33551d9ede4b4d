"""The table of a comparison, from what its runs have written: ``compare_table(folder, plans, costs, ...)``.

Retention is a plan's score over full tuning's, resampled together (``tuning.retention``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from records.errors import BadInput
from tasks.questions import CHANCE
from tuning.layers import format_layers, parse_layers
from tuning.plan import LayerPlan
from tuning.retention import summarise

ANSWERS = "answers.parquet"  # of a run; what has it is finished
START, FULL = "start", "full"


def name_of_reference(model: str) -> str:
    """What the table calls a tuned model that is scored beside the plans."""
    return f"reference {model.rsplit('/', 1)[-1]}"


def compare_table(
    folder: Path,
    plans: Sequence[LayerPlan],
    costs: dict[str, dict[str, Any]],
    *,
    n_layers: int,
    trainable: Mapping[str, int],
    reference: str | None = None,
) -> pd.DataFrame:
    """The table of the finished runs in ``folder``, one row for each plan, condition and question family.

    ``plan, layers, train, method, trainable`` (numbers that train; 0 for what is only scored); ``flops_ratio``
    (counted), ``closed_form_ratio``, ``step_time_ratio``, all to full tuning and NaN where nothing was timed;
    ``peak_memory`` and ``optimizer_bytes`` of a step; then the columns of ``tuning.retention.summarise``: ``lower`` and
    ``upper`` are the interval of ``retention``.

    ``layers`` holds plain numbers and ranges, whatever the plan's spec was; the last block is always named so that the
    model's depth can be read off ``full``.

    Args:
        folder: The comparison.
        plans: In the order of the table.
        costs: What a step of each plan costs, by name, where it was measured.
        n_layers: Blocks of the language model.
        trainable: Numbers that train, by plan; a plan that is missing trains nothing.
        reference: The tuned model that was scored beside them.

    Raises:
        BadInput: If full tuning has not finished with any seed.
    """
    answers: list[pd.DataFrame] = []
    words: list[dict[str, Any]] = []
    for path in sorted((folder / "runs").glob(f"*/{ANSWERS}")):
        facts = json.loads((path.parent / "run.json").read_text())
        answers.append(pd.read_parquet(path).assign(plan=facts["plan"], seed=int(facts["seed"])))
        words.append({"plan": facts["plan"], "seed": int(facts["seed"]), "value": float(facts["text_log_likelihood"])})
    if not any(word["plan"] == FULL for word in words):
        raise BadInput(f"compare must have a finished run of 'full', got none in {str(folder)!r}. Start it again.")
    guessed = {str(family): share for family, share in CHANCE.items()}
    scores = summarise(pd.concat(answers, ignore_index=True), pd.DataFrame(words), full=FULL, chance=guessed)
    names = [plan.name for plan in plans]
    numbers = {plan.name: _numbers(plan, n_layers) for plan in plans}
    if reference is not None:
        names.append(name_of_reference(reference))
    described = {plan.name: replace(plan, layers=numbers[plan.name]) for plan in plans}
    full = costs.get(FULL)
    rows: list[dict[Any, Any]] = []
    for name in names:
        own = _plan_columns(name, described.get(name), trainable.get(name, 0), costs.get(name), full)
        rows += [{**own, **row} for row in scores[scores["plan"] == name].drop(columns="plan").to_dict("records")]
    return pd.DataFrame(rows)


def _numbers(plan: LayerPlan, n_layers: int) -> str:
    layers = parse_layers(plan.layers, n_layers)
    return f"0-{n_layers - 1}" if len(layers) == n_layers else format_layers(layers, n_layers)


def _plan_columns(
    name: str, plan: LayerPlan | None, trainable: int, cost: dict[str, Any] | None, full: dict[str, Any] | None
) -> dict[str, Any]:
    """What is the same in all rows of a plan."""

    def ratio(first: str, second: str | None = None) -> float | None:
        if cost is None or full is None or cost[first] is None:
            return None
        own = cost[first] + (cost[second] if second else 0)
        return float(own / (full[first] + (full[second] if second else 0)))

    return {
        "plan": name,
        "layers": plan.layers if plan else "",
        "train": ",".join(plan.train) if plan else "",
        "method": plan.method if plan and plan.name != START else "",
        "trainable": trainable,
        "flops_ratio": ratio("flops_forward", "flops_backward"),
        "closed_form_ratio": ratio("closed_form_forward", "closed_form_backward"),
        "step_time_ratio": ratio("step_seconds_median"),
        "peak_memory": None if cost is None else cost["peak_memory"],
        "optimizer_bytes": None if cost is None else cost["bytes_optimizer"],
    }
