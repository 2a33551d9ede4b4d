"""Several plans from the same start, on the same data in the same order: ``run_compare`` writes ``compare.csv``.

Each plan and seed is a separate run in the comparison's folder; it is finished once its answers are written. A killed
comparison resumes with the next run, and several processes may share one. The table contains all finished runs.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

import figures
from figures.read_run import COMPARE, read_table
from models.llava import Llava
from models.token_plans.plan import parse_token_plan, recorded_token_plan
from records.manifest import commit
from records.open_model import describe_model, open_model, other_model
from records.processes import launched, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, read_timings, remove_leftovers, writing
from records.shared_jobs import one_at_a_time, share_jobs
from records.timings import describe_estimate
from tasks.errors import UserError, user_errors
from tasks.files import is_file
from tuning.compare.config import RUN, TABLE, CompareConfig
from tuning.compare.data import SurveyedData, open_data, survey_data
from tuning.compare.estimate import TIMED_STEPS, estimate_stages, plans_to_time
from tuning.compare.report_table import render_table
from tuning.compare.table import (
    ANSWERS,
    FACTS,
    FULL,
    START,
    add_costs,
    compare_table,
    is_scored,
    name_of_reference,
    plain_layers,
    read_costs,
)
from tuning.config import RECIPES, Optimisation, check_held, check_numbers, is_bf16
from tuning.cost.timing import measure_plans
from tuning.plan.apply import apply_plan
from tuning.plan.default_plans import EXTRA_PLANS, UNDER, default_plans
from tuning.plan.layers import select_layers
from tuning.plan.plan import LayerPlan, Lora
from tuning.plan.resolve import Resolved, resolve
from tuning.scoring.answers import collator, model_inputs, score_answers, text_log_likelihood
from tuning.scoring.benchmarks import BENCHMARKS, score_benchmarks
from tuning.training.checkpoint import advise_when_interrupted, last_whole_checkpoint
from tuning.training.out_of_memory import advise_when_out_of_memory
from tuning.training.save import bytes_of_model, save_model, write_json
from tuning.training.torch_compile import check_compiling
from tuning.training.train import train
from tuning.training.trainer import PlanTrainer


def run_compare(
    config: CompareConfig,
    *,
    command: Sequence[str] = (),
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress | None = None,
) -> FinishedRun | str:
    """Train and score every plan with every seed; write the table and the figures of all finished runs.

    Args:
        config: The options.
        command: The command line, for the manifest.
        on_note: Called with each line for the user.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.

    Returns:
        The finished comparison; if ``config.dry_run`` is set, text that lists the plans that would run.

    Raises:
        UserError: If a plan is unknown, ``full`` is missing, the folder has another comparison, or a launcher started
            several processes.

    Example:
        >>> from records.options import ModelOptions
        >>> tiny = ModelOptions(name="random:tiny")
        >>> text = run_compare(CompareConfig(tiny, plans=("start", "full"), dry_run=True))
        >>> text.splitlines()[-1]
        '2 of 2 runs remain'
    """
    on_progress = on_progress or ProgressBars()
    _check_launcher()
    device = own_device(config.model.device)
    _check_options(config, device)
    data = open_data(config.data)
    run = Run(config.out, RUN, config.settings, command=command, overwrite=config.overwrite)
    wide = replace(config.model, dtype="float32")
    with run.timings.stage("load"):
        llava = open_model(wide, device=device, seed=0, weights=not config.dry_run)
    plans, known, n_layers = chosen_plans(config, llava), known_plans(config, llava), llava.n_layers
    resolved = {plan.name: resolve(plan, llava) for plan in known if plan.name != START}
    jobs = _jobs(config, plans)
    timed = read_costs(config.out)
    if config.dry_run:
        remaining = [plan for folder, (plan, _) in jobs.items() if not is_scored(folder)]
        stages = estimate_stages(
            config, llava, data, resolved, remaining=remaining, untimed=plans_to_time(config, plans, timed),
            device=device,
        )  # fmt: skip
        return _describe(plans, resolved, stages, f"{len(remaining)} of {len(jobs)} runs remain")
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(config.out, "another process is at the folder: waiting for it", on_note=on_note):
        run.prepare(model=describe_model(llava), **({"data": data.digests} if data.digests else {}))
    on_note(f"{len(plans)} plans, {len(config.seeds)} seeds, in {config.out}")
    if plans_to_time(config, plans, timed) or not all(map(is_scored, jobs)):
        surveyed = survey_data(
            data, llava, skip_bad=config.data.skip_bad, preprocess=config.data.preprocess, on_progress=on_progress
        )
        on_note(f"training on {surveyed.train_survey.describe()}")
        with one_at_a_time(config.out, "another process is timing the plans: waiting for it", on_note=on_note):
            for line in surveyed.record(config.out):
                on_note(line)
            with run.timings.stage("timing"):
                _time(config, llava, plans, resolved, surveyed, on_note, on_progress)
        del llava  # each run loads its own model, and two may not fit on the device
        with run.timings.stage("training and scoring plans"):
            share_jobs(
                {folder: f"{plan}, seed {seed}" for folder, (plan, seed) in jobs.items()},
                is_done=is_scored,
                run=lambda folder: _run_one(
                    config, resolved, *jobs[folder], folder, surveyed, device, on_note, on_progress
                ),
                on_done=lambda folder: on_progress("training and scoring plans", 1, len(jobs)),
                on_note=on_note,
            )
    trained = {name: found.trained for name, found in resolved.items()}
    table = compare_table(config.out, known, n_layers=n_layers, trainable=lambda plan: trained[plan.name])
    with one_at_a_time(config.out, "another process writes the table: waiting for it", on_note=on_note):
        path, rows = config.out / TABLE, table.to_csv(index=False).encode()
        changed = not is_file(path) or path.read_bytes() != rows  # by further plans or seeds
        with writing(config.out):
            commit(path, rows)
        run.finish()
        with writing(config.out), run.drawing():
            drawn = figures.drawn_figures(config.out, again=changed)
    return _finished(config.out, table, drawn)


def finished_compare(folder: Path) -> FinishedRun:
    """Read a finished comparison; ``UserError`` if the folder holds none."""
    with user_errors(OSError, ValueError):
        table = read_table(folder / TABLE, COMPARE)
    if not (table["family"] == "all").any():
        raise UserError(f"{TABLE} must have rows of the family all, got none in {str(folder)!r}. Start it again.")
    with writing(folder):
        drawn = figures.drawn_figures(folder)
    return _finished(folder, table, drawn)


def _finished(folder: Path, table: pd.DataFrame, drawn: Sequence[Path]) -> FinishedRun:
    """The finished comparison; its main figure is cost against retention, if it was drawn."""
    ordered = sorted(drawn, key=lambda path: path.stem != "cost_against_retention")
    return FinishedRun(
        folder, table, render_table(table), tuple(ordered), table=TABLE, timings=read_timings(folder, RUN)
    )


def _describe(
    plans: Sequence[LayerPlan], resolved: Mapping[str, Resolved], stages: Mapping[str, float], remain: str
) -> str:
    """The plans, the estimated time and the runs that remain, for a dry run."""
    rows = [
        f"{plan.name:<18}{resolved[plan.name].trained:>14,} of {resolved[plan.name].total:,} train"
        for plan in plans
        if plan.name in resolved
    ]
    return "\n".join([*rows, f"time: {describe_estimate(stages)}; no step was run", remain])


def known_plans(config: CompareConfig, llava: Llava) -> list[LayerPlan]:
    """All plans with the comparison's band, parts and rank, including those it does not run."""
    band = None if config.band is None else select_layers(config.band, llava.n_layers)
    lora = Lora(config.lora_rank, 2 * config.lora_rank)
    plans = [
        plan if plan.name in (START, FULL, "projector only") else replace(plan, train=config.train)
        for plan in default_plans(llava.n_layers, band=band, lora=lora)
    ]
    if config.token_plan is not None:
        text = parse_token_plan(config.token_plan, llava.n_layers).text
        whole = [plan for plan in plans if plan.name in (FULL, "middle band")]
        plans += [replace(plan, name=plan.name + UNDER, token_plan=text) for plan in whole]
    return plans


def chosen_plans(config: CompareConfig, llava: Llava) -> list[LayerPlan]:
    """The plans that a comparison runs, in order.

    Raises ``UserError`` if a name is unknown, or ``full``, with which the others are compared, is missing.
    """
    plans = known_plans(config, llava)
    if not config.plans:
        return [plan for plan in plans if plan.name not in EXTRA_PLANS]
    known = {plan.name: plan for plan in plans}
    for name in config.plans:
        if name not in known:
            raise UserError(f"plan must be one of {', '.join(known)}, got {name!r}. Pick from them.")
    if FULL not in config.plans:
        raise UserError(f"plans must contain 'full', the baseline of the others, got {', '.join(config.plans)}.")
    return [plan for plan in plans if plan.name in config.plans]


def _check_launcher() -> None:
    """Raise ``UserError`` under a launcher, which would make all processes train one model."""
    world = launched()
    if world > 1:
        raise UserError(
            f"compare must be started without a launcher, got one that started {world} processes. Start one process "
            "for each GPU with the same --out folder, each with its own --device (cuda:0, cuda:1, ...): they share the "
            "plans and seeds."
        )


def _check_options(config: CompareConfig, device: str) -> None:
    is_bf16(config.model)
    if config.model.quantize is not None:
        raise UserError(
            f"quantize must be left out in a comparison, got {config.model.quantize}. Plans train full weights."
        )
    check_held(config.model, method="full")
    counts = {
        "scenes": config.data.scenes, "score-scenes": config.data.score_scenes, "lora-rank": config.lora_rank,
        "limit": config.data.limit, "eval-limit": config.data.eval_limit,
    }  # fmt: skip
    for seed in config.seeds:
        check_numbers(replace(config.optimisation, seed=seed), config.run, others=counts)
    if config.run.compile:
        check_compiling(device)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds must be different numbers, at least one, got {list(config.seeds)}.")


def _jobs(config: CompareConfig, plans: Sequence[LayerPlan]) -> dict[Path, tuple[str, int]]:
    """The folder of every run of a comparison, with its plan and seed; untrained plans have one seed."""
    named = [(plan.name, seed if plan.name != START else 0) for seed in config.seeds for plan in plans]
    if config.reference is not None:
        named.append((name_of_reference(config.reference), 0))
    return {config.out / "runs" / f"{plan.replace(' ', '-').lower()}-seed{seed}": (plan, seed) for plan, seed in named}


def _run_one(
    config: CompareConfig,
    resolved: Mapping[str, Resolved],
    name: str,
    seed: int,
    folder: Path,
    data: SurveyedData,
    device: str,
    on_note: Callable[[str], None],
    on_progress: OnProgress,
) -> None:
    """Train one plan with one seed, unless it is untrained or the reference, and score it."""
    wide = replace(config.model, dtype="float32")
    if name == START or name in resolved:
        llava = open_model(wide, device=device, seed=0)
    else:
        assert config.reference is not None
        llava = other_model(wide, config.reference, device=device, seed=0)
    remove_leftovers(folder)
    if (folder / ANSWERS).is_file():
        on_note(f"{name}, seed {seed}: its files are damaged, it is trained and scored again")
    facts: dict[str, Any] = {"plan": name, "seed": seed, "steps": 0}
    with (
        user_errors(OSError),
        advise_when_out_of_memory(config.optimisation.batch_size),
        advise_when_interrupted(folder),
    ):
        if name in resolved:
            facts |= _train_one(config, resolved[name], seed, llava, data, folder, on_note, on_progress)
        if name in resolved:
            token_plan = resolved[name].plan.token_plan
        else:  # the start was trained under none
            model = config.model.name if name == START else str(config.reference)
            token_plan = recorded_token_plan(model, llava.n_layers)
        answers, words = _score(config, llava, data, token_plan)
        with torch.autocast(llava.device.type, dtype=torch.bfloat16, enabled=is_bf16(config.model)):
            scored = score_benchmarks(
                llava, data.data.benchmarks, batch_size=config.optimisation.batch_size, token_plan=token_plan,
                preprocess=data.preprocess,
            )  # fmt: skip
    if not scored.empty:
        commit(folder / BENCHMARKS, scored.to_parquet(index=False))
    write_json(folder / FACTS, {**facts, "text_log_likelihood": words})
    commit(folder / ANSWERS, answers.to_parquet(index=False))
    for leftover in folder.glob("checkpoint-*"):
        shutil.rmtree(leftover)
    on_note(f"{name}, seed {seed}: {_line(answers, words)}")


def _train_one(
    config: CompareConfig,
    resolved: Resolved,
    seed: int,
    llava: Llava,
    data: SurveyedData,
    folder: Path,
    on_note: Callable[[str], None],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train the model in place, from the last checkpoint if there is one."""
    plan, bf16 = resolved.plan, is_bf16(config.model)
    apply_plan(llava, resolved, seed=seed, low_precision=bf16)
    on_note(f"{plan.name}, seed {seed}: {resolved.trained:,} of {resolved.total:,} train")
    trained = train(
        llava,
        resolved,
        data.samples(llava),
        optimisation=_optimisation(config, plan, seed),
        options=config.run,
        folder=folder,
        bf16=bf16,
        facts={"settings": config.settings, "plan": plan.to_dict(), "seed": seed, "model": llava.weight_hash},
        resume=last_whole_checkpoint(folder, on_note),
        model_bytes=bytes_of_model(resolved) if config.keep_weights else 0,
        on_note=lambda line: on_note(f"{plan.name}, seed {seed}: {line}"),
        on_progress=lambda stage, done, total: on_progress(f"{plan.name}, seed {seed}: {stage}", done, total),
        on_trained=(lambda trainer: _keep(config, trainer, folder)) if config.keep_weights else None,
    )
    return {
        "layers": plain_layers(plan, llava.n_layers),
        "compiled": config.run.compile,
        "steps": trained.steps,
        "losses": {str(step): loss for step, loss in trained.losses.items()},
    }


def _optimisation(config: CompareConfig, plan: LayerPlan, seed: int) -> Optimisation:
    chosen = replace(config.optimisation, seed=seed).with_rates(RECIPES[2])
    return replace(chosen, lr=config.lora_lr) if plan.method == "lora" else chosen


def _keep(config: CompareConfig, trainer: PlanTrainer, folder: Path) -> None:
    """Write the tuned model as a single run does, LoRA as an adapter; the model in memory does not change."""

    def unrounded() -> Llava:
        return open_model(replace(config.model, dtype="float32"), device="cpu", seed=0)

    with user_errors(OSError, SafetensorError):
        reload = unrounded if is_bf16(config.model) else None
        save_model(
            trainer.llava, trainer.resolved, trainer.full_tensors(), folder, reload=reload, base=config.model.name
        )
        write_json(folder / "plan.json", trainer.resolved.to_dict())


def _score(config: CompareConfig, llava: Llava, data: SurveyedData, token_plan: str) -> tuple[pd.DataFrame, float]:
    """The answers under every condition, one row each, and the log-likelihood of ordinary text."""
    tables = []
    with torch.autocast(llava.device.type, dtype=torch.bfloat16, enabled=is_bf16(config.model)):
        for condition, samples in data.eval_samples(llava).items():
            answers = score_answers(llava, samples, batch_size=config.optimisation.batch_size, token_plan=token_plan)
            tables.append(answers.assign(condition=condition))
        words = text_log_likelihood(llava)
    return pd.concat(tables, ignore_index=True), words


def _line(answers: pd.DataFrame, words: float) -> str:
    means = answers.groupby("condition", sort=False)["right"].mean()
    return ", ".join(f"{name} {float(score):.3f}" for name, score in means.items()) + f", text {words:.3f} nats a token"


def _time(
    config: CompareConfig,
    llava: Llava,
    plans: Sequence[LayerPlan],
    resolved: Mapping[str, Resolved],
    data: SurveyedData,
    on_note: Callable[[str], None],
    on_progress: OnProgress,
) -> None:
    """Time a step of each plan that was not timed before, alternating with ``full``, in this process."""
    timed = {name: resolved[name] for name in plans_to_time(config, plans, read_costs(config.out))}
    if not timed:
        return
    samples = data.samples(llava)
    pictured = samples.pictured.nonzero()[0]
    few = (pictured if len(pictured) else np.arange(len(samples)))[: config.optimisation.batch_size]
    with user_errors(OSError):
        batch = collator(llava)([samples[int(index)] for index in few])
    given = {name: value for name, value in batch.items() if name not in ("owner", "sample")}
    on_note(f"timing {len(timed)} plans, {config.timing_rounds} rounds")
    with advise_when_out_of_memory(config.optimisation.batch_size):
        costs = measure_plans(
            llava, timed, model_inputs(given, llava), rounds=config.timing_rounds, repeats=TIMED_STEPS - 2, warmup=2,
            checkpointing=config.run.gradient_checkpointing, bf16=is_bf16(config.model),
            on_turn=lambda *turn: on_progress("timing plans", 1, config.timing_rounds * len(timed)),
        )  # fmt: skip
    add_costs(config.out, costs)
