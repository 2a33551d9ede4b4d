"""The table of a comparison, made from the files of its runs: ``compare_table(folder, plans, ...)``.

Retention is a plan's score over full tuning's, with a paired interval (``tuning.scoring.retention``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tasks.checksums import check_whole, is_whole, read_whole_json
from tasks.errors import UserError, one_line
from tuning.compare.data import SCENE_CONDITIONS, chance_of
from tuning.cost.measure import Cost
from tuning.plan.layers import layer_spec, select_layers
from tuning.plan.plan import LayerPlan
from tuning.scoring.benchmarks import BENCHMARKS, benchmark_rows
from tuning.scoring.retention import summarise
from tuning.training.save import write_json

ANSWERS = "answers.parquet"  # a run with this file is finished
FACTS = "run.json"  # written before it
START, FULL = "start", "full"
_REFERENCE = "reference "
_COSTS = "costs.json"
# Key in costs.json: seconds of the step of ``full`` that was timed in the same session.
BESIDE = "full_step_seconds_median"
_TOTALS = {
    "full_flops": ("flops_forward", "flops_backward"),
    "full_closed_form": ("closed_form_forward", "closed_form_backward"),
}


def name_of_reference(model: str) -> str:
    """The name in the table of a tuned model that is scored beside the plans."""
    return _REFERENCE + model.rsplit("/", 1)[-1]


def read_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """The cost of a step of each timed plan by name, with the step of ``full`` timed in the same session."""
    path = folder / _COSTS
    if not path.is_file():
        return {}
    costs = read_whole_json(path, advice="Remove it to time the plans again.")
    if not all(isinstance(cost, dict) and "step_seconds_median" in cost for cost in costs.values()):
        raise UserError(
            f"{_COSTS} must hold the costs of plans, got another value in {str(folder)!r}. "
            "Remove it to time the plans again."
        )
    once = _beside(costs[FULL]) if FULL in costs else {}
    return {name: {**once, **cost} for name, cost in costs.items()}  # files of one session may lack these keys


def add_costs(folder: Path, measured: Mapping[str, Cost]) -> None:
    """Add the costs of plans that were timed in one process with ``full``; existing entries are kept."""
    beside = _beside(measured[FULL].to_dict())
    described = {name: {**cost.to_dict(), **beside} for name, cost in measured.items()}
    write_json(folder / _COSTS, {**described, **read_costs(folder)})


def _beside(full: Mapping[str, Any]) -> dict[str, Any]:
    """Step time, FLOPs and closed-form cost of full tuning, stored with every plan as denominators of its ratios."""
    return {BESIDE: full.get("step_seconds_median"), **{name: _sum(full, parts) for name, parts in _TOTALS.items()}}


def _sum(cost: Mapping[str, Any], parts: Sequence[str]) -> float | None:
    known = [cost.get(part) for part in parts]
    return None if None in known else float(sum(value for value in known if value is not None))


def is_scored(run: Path) -> bool:
    """True if the answers of a run and its facts are there, as they were written."""
    return is_whole(run / ANSWERS) and is_whole(run / FACTS)


def compare_table(
    folder: Path,
    plans: Sequence[LayerPlan],
    *,
    n_layers: int,
    trainable: Callable[[LayerPlan], int],
) -> pd.DataFrame:
    """The table of all finished runs in ``folder``, one row for each plan, condition and question family.

    Columns: ``plan, layers, train, method, trainable`` (number of weights that train; 0 for untrained models);
    ``flops_ratio`` (counted), ``closed_form_ratio``, ``step_time_ratio``, all relative to ``full`` in the same session
    and NaN if not timed; ``peak_memory`` and ``optimizer_bytes`` of a step; then the columns of
    ``tuning.scoring.retention.summarise``, where ``lower`` and ``upper`` are the interval of ``retention``. ``layers``
    holds numbers and ranges and always names the last block, so that ``full`` shows the model's depth.

    Rows follow the order of ``plans``; reference models come last. ``trainable`` is called for finished plans. Raises
    ``UserError`` if no run of full tuning is finished, or a run used a different plan of the same name.
    """
    described = {plan.name: plan for plan in plans}
    runs = _read_runs(folder)
    words = [facts for facts, _ in runs]
    for facts in words:
        plan = described.get(facts["plan"])
        if plan is not None and facts.get("layers", plain_layers(plan, n_layers)) != plain_layers(plan, n_layers):
            raise UserError(
                f"plan {plan.name!r} must be the one that ran, got layers {facts['layers']} in seed {facts['seed']} "
                f"and {plain_layers(plan, n_layers)} now. Choose another folder with --out."
            )
    if not any(word["plan"] == FULL for word in words):
        raise UserError(f"compare must have a finished run of 'full', got none in {str(folder)!r}. Start it again.")
    answers = _stacked(runs)
    references = sorted({word["plan"] for word in words if word["plan"].startswith(_REFERENCE)})
    scores = summarise(
        answers, pd.DataFrame(words), full=FULL, untrained=(START, *references),
        chance=chance_of(list(answers["condition"].unique())),
    )  # fmt: skip
    items = _read_benchmarks(folder)
    benchmarks = {} if items.empty else benchmark_rows(items, full=FULL, untrained=(START, *references))
    finished = {word["plan"] for word in words}
    costs = read_costs(folder)
    rows: list[dict[Any, Any]] = []
    for name in [*(name for name in described if name in finished), *references]:
        plan = described.get(name)
        shown = None if plan is None else replace(plan, layers=plain_layers(plan, n_layers))
        trained = 0 if plan is None or name == START else trainable(plan)
        own = _plan_columns(name, shown, trained, costs.get(name))
        rows += [{**own, **row} for row in scores[scores["plan"] == name].drop(columns="plan").to_dict("records")]
        rows += [{**own, **row} for row in benchmarks.get(name, ())]
    return pd.DataFrame(rows)


def read_answers(folder: Path) -> pd.DataFrame:
    """All answers of the finished runs in ``folder``, one row per answer; ``UserError`` if no run has finished.

    Columns: ``plan, seed, condition, id, group, family, right, log_prob, tokens``. Resampling draws ``id``: the scene,
    or for files the picture, since several samples may show one.
    """
    runs = _read_runs(folder)
    if not runs:
        raise UserError(f"compare must have a finished run, got none in {str(folder)!r}. Start it again.")
    return _stacked(runs)


def _read_runs(folder: Path) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """run.json and the answers of each finished run; ``value`` is the log-likelihood of ordinary text."""
    return _read_runs_with(folder, ANSWERS)


def _read_runs_with(folder: Path, name: str) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """run.json and the table ``name`` of each finished run that has it."""
    runs = []
    for path in sorted(path.with_name(name) for path in (folder / "runs").glob(f"*/{ANSWERS}")):
        if not path.is_file():
            continue
        advice = f"Remove {path.parent.name} to train and score it anew."
        facts = read_whole_json(path.parent / FACTS, advice=advice)
        check_whole(path, advice=advice)
        try:
            value = float(facts["text_log_likelihood"])
            runs.append(({**facts, "seed": int(facts["seed"]), "value": value}, pd.read_parquet(path)))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"run must hold its scores and facts, got {one_line(error)} in {str(path.parent)!r}. {advice}"
            ) from error
    return runs


def _read_benchmarks(folder: Path) -> pd.DataFrame:
    """What each question of a benchmark adds to the score, of all finished runs; empty if none was scored."""
    tables = []
    for facts, answers in _read_runs_with(folder, BENCHMARKS):
        tables.append(answers.assign(plan=facts["plan"], seed=facts["seed"]))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _stacked(runs: Sequence[tuple[dict[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    tables = []
    for facts, answers in runs:
        unit = answers["id"].where(answers["condition"].isin(SCENE_CONDITIONS), answers["group"])
        tables.append(answers.assign(id=unit, plan=facts["plan"], seed=facts["seed"]))
    return pd.concat(tables, ignore_index=True)


def plain_layers(plan: LayerPlan, n_layers: int) -> str:
    """A plan's layers as numbers and ranges; the last block is always a number."""
    layers = select_layers(plan.layers, n_layers)
    return f"0-{n_layers - 1}" if len(layers) == n_layers else layer_spec(layers, n_layers)


def _plan_columns(name: str, plan: LayerPlan | None, trainable: int, cost: dict[str, Any] | None) -> dict[str, Any]:
    """The columns that are equal in all rows of a plan."""

    def ratio(whole: str) -> float | None:
        own = None if cost is None else _sum(cost, _TOTALS[whole])
        return None if cost is None or own is None or not cost.get(whole) else float(own / cost[whole])

    seconds, beside = (None, None) if cost is None else (cost["step_seconds_median"], cost.get(BESIDE))
    return {
        "plan": name,
        "layers": plan.layers if plan else "",
        "train": ",".join(plan.train) if plan else "",
        "method": plan.method if plan and plan.name != START else "",
        "trainable": trainable,
        "flops_ratio": ratio("full_flops"),
        "closed_form_ratio": ratio("full_closed_form"),
        "step_time_ratio": None if seconds is None or beside is None else float(seconds / beside),
        "peak_memory": None if cost is None else cost["peak_memory"],
        "optimizer_bytes": None if cost is None else cost["bytes_optimizer"],
    }
