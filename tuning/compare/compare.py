"""Several plans from the same start, on the same data in the same order: ``run_compare`` writes ``compare.csv``.

Each plan and seed is a run of its own in the comparison's folder, finished once its answers are written; a comparison
that was killed goes on with the next, and several processes may share one. The table is that of the folder: it holds
all that is finished there, whichever call asked for it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

import figures
from models.llava import Llava
from models.loading.load import load
from records.html import run_html
from records.manifest import RunKind, difference, new_manifest, read_manifest, write_atomically, write_manifest
from records.processes import launched, own_device
from records.progress import OnProgress, shown_progress
from records.sharing import one_at_a_time, share_jobs
from tasks.errors import UserError, user_errors
from tuning.compare.config import CompareConfig
from tuning.compare.data import Surveyed, open_data, survey_data
from tuning.compare.report_table import render_table
from tuning.compare.table import (
    ANSWERS,
    FULL,
    START,
    add_costs,
    compare_table,
    name_of_reference,
    plain_layers,
    read_costs,
)
from tuning.config import check_numbers
from tuning.cost.timing import measure_plans
from tuning.plan.apply import apply_plan
from tuning.plan.default_plans import default_plans
from tuning.plan.layers import parse_layers
from tuning.plan.plan import LayerPlan, Lora
from tuning.plan.resolve import resolve
from tuning.scoring.answers import collator, model_inputs, score_answers, text_log_likelihood
from tuning.training.checkpoint import last_checkpoint
from tuning.training.out_of_memory import enough_memory
from tuning.training.save import bytes_of_model, save_model, write_json
from tuning.training.torch_compile import check_compiling, is_compiled
from tuning.training.trainer import PlanTrainer, train

KIND = RunKind("layerwise-finetune compare")


class Compared(NamedTuple):
    """A finished comparison."""

    folder: Path
    table: pd.DataFrame
    figures: tuple[Path, ...]

    def _repr_html_(self) -> str:
        """For notebooks: the main numbers, cost against retention where it was drawn, and where the files are."""
        figure = self.figures[-1] if self.figures else None
        return run_html(render_table(self.table), figure=figure, folder=self.folder)


def run_compare(
    config: CompareConfig,
    *,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress | None = None,
) -> Compared:
    """Trains and scores every plan with every seed, and writes the table and the figures of all that is finished.

    Args:
        config: The comparison.
        on_note: Called with each line for the reader.
        on_progress: Told how it goes, as (stage, newly done, total); None shows it where this is a notebook.

    Raises:
        UserError: If a plan is unknown, ``full`` is missing, the folder holds another comparison, or a launcher started
            several processes as one run.
    """
    on_progress = on_progress or shown_progress()
    _refuse_launcher()
    with user_errors(ValueError):
        device = own_device(config.running.device)
    config = replace(config, running=replace(config.running, device=device))
    _check(config)
    opened = open_data(config.data)
    manifest = new_manifest(KIND, config.settings) | ({"data": opened.digests} if opened.digests else {})
    _check_folder(config.out, manifest)
    with user_errors(ValueError, OSError):
        llava = load(config.model, device=device, dtype=torch.float32)
    plans, known, n_layers = chosen_plans(config, llava), known_plans(config, llava), llava.n_layers
    trained = {plan.name: resolve(plan, llava).trained for plan in known if plan.name != START}
    with user_errors(OSError):
        config.out.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(config.out, "another process is at the folder: waiting for it", on_note=on_note):
        manifest["model"] = {"weight_hash": llava.weight_hash}
        _check_folder(config.out, manifest)
        with user_errors(OSError):
            write_manifest(config.out, manifest)
    jobs = _jobs(config, plans)
    untimed = [plan for plan in plans if plan.name != START and plan.name not in read_costs(config.out)]
    on_note(f"{len(plans)} plans, {len(config.seeds)} seeds, in {config.out}")
    if (config.timing_rounds and untimed) or not all(map(_is_done, jobs)):
        data = survey_data(opened, llava, skip_bad=config.data.skip_bad, on_progress=on_progress)
        on_note(f"training on {data.found.describe()}")
        with one_at_a_time(config.out, "another process is timing the plans: waiting for it", on_note=on_note):
            for line in data.record(config.out):
                on_note(line)
            _time(config, llava, plans, data, on_note)
        del llava  # each run opens its own, and two may not fit on the device
        share_jobs(
            {folder: f"{plan}, seed {seed}" for folder, (plan, seed) in jobs.items()},
            is_done=_is_done,
            run=lambda folder: _run_one(config, plans, *jobs[folder], folder, data, on_note),
            on_done=lambda folder: on_progress("training and scoring plans", 1, len(jobs)),
            on_note=on_note,
        )
    table = compare_table(config.out, known, n_layers=n_layers, trainable=lambda plan: trained[plan.name])
    write_atomically(config.out / "compare.csv", table.to_csv(index=False).encode())
    return Compared(config.out, table, tuple(paths.png for paths in figures.draw_run(config.out)))


def known_plans(config: CompareConfig, llava: Llava) -> list[LayerPlan]:
    """All default plans with the band, parts and rank of a comparison, whichever of them it runs."""
    band = None if config.band is None else parse_layers(config.band, llava.n_layers)
    lora = Lora(config.lora_rank, 2 * config.lora_rank)
    return [
        plan if plan.name in (START, FULL, "projector only") else replace(plan, train=config.train)
        for plan in default_plans(llava.n_layers, band=band, lora=lora)
    ]


def chosen_plans(config: CompareConfig, llava: Llava) -> list[LayerPlan]:
    """The plans that a comparison runs, in their order.

    Raises:
        UserError: If a name is unknown, or ``full``, which everything is compared with, is left out.
    """
    plans = known_plans(config, llava)
    if not config.plans:
        return plans
    known = {plan.name: plan for plan in plans}
    for name in config.plans:
        if name not in known:
            raise UserError(f"plan must be one of {', '.join(known)}, got {name!r}. Pick from them.")
    if FULL not in config.plans:
        raise UserError(f"plans must hold 'full', which the others are compared with, got {', '.join(config.plans)}.")
    return [plan for plan in plans if plan.name in config.plans]


def _refuse_launcher() -> None:
    """Each process takes runs of its own here; a launcher would join them and train one model over all of them."""
    world = launched()
    if world > 1:
        raise UserError(
            f"compare must be started without a launcher, got one that started {world} processes. Start one process "
            "for each GPU with the same --out folder, each with its own --device (cuda:0, cuda:1, ...): they share the "
            "plans and seeds."
        )


def _check(config: CompareConfig) -> None:
    """Refuses what no comparison can have."""
    counts = {
        "scenes": config.data.scenes, "score-scenes": config.data.score_scenes, "lora-rank": config.lora_rank,
        "limit": config.data.limit, "eval-limit": config.data.eval_limit,
    }  # fmt: skip
    for seed in config.seeds:
        check_numbers(replace(config.optimisation, seed=seed), config.running, counts=counts)
    if config.running.compile:
        check_compiling(config.running.device)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds must be different numbers, at least one, got {list(config.seeds)}.")


def _check_folder(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Passes if the folder is free, or holds the same comparison.

    Raises:
        UserError: If it holds anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out must be a folder, got the file {str(folder)!r}. Choose another name.")
    # what starts with a dot may be a process that starts beside this one and writes the same manifest
    if not folder.is_dir() or all(entry.name.startswith(".") for entry in folder.iterdir()):
        return
    with user_errors(ValueError):
        old = read_manifest(folder, KIND)
    if old is None:
        raise UserError(f"out must be empty or a comparison, got {str(folder)!r}. Choose another folder.")
    # comparisons of earlier versions do not say which weights they began with
    differing = difference(old, {name: value for name, value in manifest.items() if name != "model" or name in old})
    if differing is not None:
        raise UserError(
            f"out must hold the same comparison or none, got one in {str(folder)!r} that differs: {differing}. "
            "Choose another folder with --out."
        )


def _is_done(folder: Path) -> bool:
    return (folder / ANSWERS).is_file()


def _jobs(config: CompareConfig, plans: Sequence[LayerPlan]) -> dict[Path, tuple[str, int]]:
    """The folder of every run of a comparison, with its plan and seed; what is not trained has one seed."""
    named = [(plan.name, seed if plan.name != START else 0) for seed in config.seeds for plan in plans]
    if config.reference is not None:
        named.append((name_of_reference(config.reference), 0))
    return {config.out / "runs" / f"{plan.replace(' ', '-').lower()}-seed{seed}": (plan, seed) for plan, seed in named}


def _run_one(
    config: CompareConfig,
    plans: Sequence[LayerPlan],
    name: str,
    seed: int,
    folder: Path,
    data: Surveyed,
    on_note: Callable[[str], None],
) -> None:
    """Trains one plan with one seed, where there is anything to train, and scores it."""
    plan = next((plan for plan in plans if plan.name == name), None)
    model = config.model if plan is not None else config.reference
    assert model is not None
    with user_errors(ValueError, OSError):
        llava = load(model, device=config.running.device, dtype=torch.float32, validate=plan is None)
    facts: dict[str, Any] = {"plan": name, "seed": seed, "steps": 0}
    with user_errors(OSError), enough_memory(config.optimisation.batch_size):
        if plan is not None and name != START:
            facts |= _train_one(config, plan, seed, llava, data, folder, on_note)
        answers, words = _score(config, llava, data)
    write_json(folder / "run.json", {**facts, "text_log_likelihood": words})
    write_atomically(folder / ANSWERS, answers.to_parquet(index=False))
    for leftover in folder.glob("checkpoint-*"):  # nothing is resumed from here any more
        shutil.rmtree(leftover)
    on_note(f"{name}, seed {seed}: {_line(answers, words)}")


def _train_one(
    config: CompareConfig,
    plan: LayerPlan,
    seed: int,
    llava: Llava,
    data: Surveyed,
    folder: Path,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    """Trains the model in place, from the last checkpoint where there is one."""
    resolved = resolve(plan, llava)
    apply_plan(llava, resolved, seed=seed, low_precision=config.running.bf16)
    rate = config.lora_lr if plan.method == "lora" else config.optimisation.lr
    on_note(f"{plan.name}, seed {seed}: {resolved.trained:,} of {resolved.total:,} train")
    trained = train(
        llava,
        resolved,
        data.samples(llava),
        optimisation=replace(config.optimisation, lr=rate, seed=seed),
        running=config.running,
        folder=folder,
        facts={"settings": config.settings, "plan": plan.to_dict(), "seed": seed, "model": llava.weight_hash},
        resume=last_checkpoint(folder),
        model_bytes=bytes_of_model(resolved) if config.keep_weights else 0,
        on_note=lambda line: on_note(f"{plan.name}, seed {seed}: {line}"),
        on_trained=(lambda trainer: _keep(config, trainer, folder)) if config.keep_weights else None,
    )
    layers = plain_layers(plan, llava.n_layers)
    return {
        "layers": layers,
        "compiled": is_compiled(plan, asked=config.running.compile),
        "steps": trained.steps,
        "losses": {str(step): loss for step, loss in trained.losses.items()},
    }


def _keep(config: CompareConfig, trainer: PlanTrainer, folder: Path) -> None:
    """The tuned model as a single run writes it, LoRA as an adapter; the model at hand stays as it is."""

    def unrounded() -> Llava:
        return load(config.model, device="cpu", dtype=torch.float32, validate=False)

    with user_errors(OSError, SafetensorError):
        reload = unrounded if config.running.bf16 else None
        save_model(trainer.llava, trainer.resolved, trainer.full_tensors(), folder, reload=reload)
        write_json(folder / "plan.json", trainer.resolved.to_dict())


def _score(config: CompareConfig, llava: Llava, data: Surveyed) -> tuple[pd.DataFrame, float]:
    """The answers under every condition, one row each, and the log-likelihood of ordinary text."""
    low = torch.autocast(llava.device.type, dtype=torch.bfloat16, enabled=config.running.bf16)
    tables = []
    with low:
        for condition, samples in data.asked(llava).items():
            answers = score_answers(llava, samples, batch_size=config.optimisation.batch_size)
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
    data: Surveyed,
    on_note: Callable[[str], None],
) -> None:
    """Times a step of each plan that was not timed before, in turn with ``full``, all in this process."""
    known = read_costs(config.out)
    missing = [plan for plan in plans if plan.name not in (START, *known)]
    if config.timing_rounds < 1 or not missing:
        return
    timed = {plan.name: resolve(plan, llava) for plan in plans if plan.name == FULL or plan in missing}
    samples = data.samples(llava)
    pictured = samples.pictured.nonzero()[0]
    few = (pictured if len(pictured) else np.arange(len(samples)))[: config.optimisation.batch_size]
    with user_errors(OSError):
        batch = collator(llava)([samples[int(index)] for index in few])
    given = {name: value for name, value in batch.items() if name not in ("owner", "sample")}
    on_note(f"timing {len(timed)} plans, {config.timing_rounds} rounds")
    with enough_memory(config.optimisation.batch_size):
        costs = measure_plans(
            llava, timed, model_inputs(given, llava), rounds=config.timing_rounds, repeats=3,
            checkpointing=config.running.gradient_checkpointing, bf16=config.running.bf16,
        )  # fmt: skip
    add_costs(config.out, costs)
