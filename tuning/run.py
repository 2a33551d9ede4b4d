"""One tuning run from settings to a folder: check, survey, estimate, train, score, save. ``run_tuning`` does it all."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from models.llava import Llava
from models.loading.load import load
from records.manifest import (
    FILE,
    RunKind,
    difference,
    new_manifest,
    read_manifest,
    write_manifest,
)
from records.processes import join_processes, own_device
from records.progress import OnProgress, shown_progress, silent
from records.settings import slug
from tasks.errors import UserError, user_errors
from tuning.config import TuningConfig, check_numbers
from tuning.cost.estimate import Estimate, cost_of_run, estimate_run, measure_first
from tuning.data.samples import Samples, Survey, Writing, refusal_of, survey_usable, write_skipped
from tuning.data.scene_mix import FIRST_CAPTION_SCENE, SceneMix, SceneQuestions
from tuning.data.sources import Source, Subset, first_of, open_source
from tuning.plan.apply import apply_plan
from tuning.plan.choose_layers import describe_choice
from tuning.plan.connector import with_connector
from tuning.plan.resolve import Resolved, resolve
from tuning.training.checkpoint import last_checkpoint
from tuning.training.out_of_memory import enough_memory
from tuning.training.save import bytes_of_model, save_model, write_json
from tuning.training.torch_compile import check_compiling, is_compiled
from tuning.training.trainer import PlanTrainer, Trained, train
from tuning.training.trainer_arguments import check_launcher

KIND = RunKind("layerwise-finetune")


class Outcome(NamedTuple):
    """A finished run."""

    folder: Path
    estimate: Estimate
    trained: Trained
    cost: dict[str, Any]


class Prepared(NamedTuple):
    """Everything a run needs, checked."""

    llava: Llava
    resolved: Resolved
    samples: Samples
    found: Survey
    eval_sets: dict[str, Samples]
    eval_found: dict[str, Survey]


def run_tuning(
    config: TuningConfig,
    *,
    dry_run: bool = False,
    command: Sequence[str] = (),
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress | None = None,
) -> Outcome | Estimate:
    """Trains one plan and saves it, or says what that would take.

    Args:
        config: The run.
        dry_run: Check everything, and return the estimate.
        command: For the manifest.
        on_note: Called with each line for the reader.
        on_progress: Told how it goes, as (stage, newly done, total); None shows it where this is a notebook.

    Raises:
        UserError: If anything that was given cannot be used.
    """
    on_progress = on_progress or shown_progress()
    check_launcher(config.running)
    if is_compiled(config.plan, asked=config.running.compile):
        check_compiling(config.running.device, keep_prefix=config.running.keep_prefix)
    with user_errors(ValueError):
        device = own_device(config.running.device)
    processes = join_processes(device)
    folder = config.out or Path("runs") / f"{slug(config.model)}-{slug(config.plan.label)}"
    manifest = new_manifest(KIND, config.settings)
    resume = _checked_folder(folder, config, manifest, dry_run=dry_run)
    prepared = prepare_run(config, device, on_note=on_note, on_progress=on_progress)
    llava, resolved, samples, found, eval_sets, eval_found = prepared
    skipped = {"skipped.csv": found.skipped, **{f"skipped-{n}.csv": own.skipped for n, own in eval_found.items()}}
    for bad in skipped.values():
        if bad and not config.data.skip_bad:
            raise refusal_of(bad)
    estimate = estimate_run(config, llava, resolved, samples, found, processes.world)
    if dry_run:
        return estimate
    # How many processes share a step decides its batch, and so the weights.
    facts = {
        "settings": config.settings,
        "model": llava.weight_hash,
        "data": samples.source.digest,
        "processes": processes.world,
    }
    if processes.is_main:
        with user_errors(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            described = {"id": llava.id, "weight_hash": llava.weight_hash}
            write_manifest(
                folder,
                {**manifest, "model": described, "data": samples.source.digest, "command": list(command or sys.argv)},
            )
            write_json(folder / "plan.json", resolved.to_dict())
            for name, bad in skipped.items():
                if bad or name == "skipped.csv":
                    write_skipped(folder / name, bad)
    processes.wait()
    for name, bad in skipped.items():
        if bad:
            on_note(f"{len(bad)} samples left out, see {folder / name}")
    apply_plan(llava, resolved, seed=config.optimisation.seed, low_precision=config.running.bf16)
    with (
        user_errors(OSError),
        enough_memory(config.optimisation.batch_size),
    ):
        measured = measure_first(config, llava, resolved, samples, estimate)
        trained = train(
            llava,
            resolved,
            samples,
            optimisation=config.optimisation,
            running=replace(config.running, device=device),
            folder=folder,
            facts=facts,
            eval_sets=eval_sets,
            resume=resume,
            model_bytes=bytes_of_model(resolved, merge=config.merge),
            on_note=on_note if processes.is_main else lambda line: None,
            on_progress=on_progress if processes.is_main else silent,
            on_trained=lambda trainer: _save(config, trainer, folder, is_main=processes.is_main),
        )
    cost = cost_of_run(config, measured, trained, estimate, llava.device, processes.world)
    if processes.is_main:
        write_json(folder / "cost.json", cost)
    processes.wait()
    return Outcome(folder, estimate, trained, cost)


def prepare_run(
    config: TuningConfig,
    device: str,
    *,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = silent,
) -> Prepared:
    """Model, plan and data, each checked; the plan is not applied yet.

    Raises:
        UserError: If one of them cannot be used.
    """
    _check_numbers(config)
    llava = _opened(config, device)
    if config.plan.layers.startswith("auto:"):
        on_note(describe_choice(Path(config.plan.layers.removeprefix("auto:")), llava.n_layers))
    resolved = resolve(config.plan, llava)
    with user_errors(ValueError, OSError):
        source = training_source(config)
        found = survey_usable(llava, source, config.writing, "reading samples", on_progress)
        scored, how = evaluation_sources(config), scoring_of(config)
        eval_found = {name: survey_usable(llava, own, how, "reading questions") for name, own in scored.items()}
        eval_sets = {name: Samples(llava, own, eval_found[name], how) for name, own in scored.items()}
    return Prepared(llava, resolved, Samples(llava, source, found, config.writing), found, eval_sets, eval_found)


def _opened(config: TuningConfig, device: str, *, validate: bool = True) -> Llava:
    """The model that a run starts from."""
    with user_errors(ValueError, OSError):
        llava = load(config.model, device=device, dtype=torch.float32, validate=validate)
    return with_connector(llava, config.connector, seed=config.optimisation.seed)


def training_source(config: TuningConfig) -> Source:
    """The samples that a run trains on."""
    data = config.data
    scenes = SceneMix(data.scenes, format_prompts=data.format_prompts, apart=data.apart, stage=config.stage)
    return first_of(open_source(data.spec, data.images, scenes=scenes), data.limit)


def evaluation_sources(config: TuningConfig) -> dict[str, Source]:
    """What is scored on the way, by name."""
    data = config.data
    if data.eval_spec is None:
        return {}
    if data.eval_spec == "scenes":
        if config.stage == 1:  # a model that knows no questions yet: how likely it finds captions of other scenes
            return {"captions": SceneMix(data.eval_limit, stage=1, first=FIRST_CAPTION_SCENE)}
        return {"seen": SceneQuestions(data.eval_limit, format_prompts=data.format_prompts)}
    source = open_source(data.eval_spec, data.images)
    return {"eval": Subset(source, range(min(data.eval_limit, len(source))))}


def scoring_of(config: TuningConfig) -> Writing:
    """How questions are written: as the evaluation of LLaVA-1.5 writes them, and captions as stage 1 does."""
    # An answer that was cut would be right on what is left of it.
    if config.stage == 1 and config.data.eval_spec == "scenes":
        return replace(config.writing, on_long="refuse")
    return Writing("vicuna_v1", max_length=config.max_length, on_long="refuse")


def _checked_folder(folder: Path, config: TuningConfig, manifest: dict[str, Any], *, dry_run: bool) -> Path | None:
    """The checkpoint to go on from; None to start."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out must be a folder, got the file {str(folder)!r}. Choose another name.")
    occupied = folder.is_dir() and any(folder.iterdir())
    if config.resume is not None:
        resume = last_checkpoint(folder) if str(config.resume) == "last" else config.resume
        if resume is None or not resume.is_dir():
            wanted = "a checkpoint" if resume is None else str(resume)
            raise UserError(f"resume must name an existing checkpoint, got none ({wanted}) in {str(folder)!r}.")
    else:
        resume = None
    if dry_run or not occupied:
        return resume
    with user_errors(ValueError):
        old = read_manifest(folder, KIND)
    if old is None:
        raise UserError(
            f"out must be empty or a run of layerwise-finetune, got {str(folder)!r}. Choose another folder."
        )
    differing = difference(old, manifest)
    if differing is not None:
        raise UserError(
            f"out must hold the same run or none, got one in {str(folder)!r} that differs: {differing}. "
            "Choose another folder with --out."
        )
    if resume is None and (last_checkpoint(folder) is not None or (folder / "cost.json").is_file()):
        raise UserError(f"out must be new, got a run in {str(folder)!r} (see {FILE}). Go on with --resume last.")
    return resume


def _check_numbers(config: TuningConfig) -> None:
    """Refuses numbers that no run can have."""
    given = {"scenes": config.data.scenes, "eval-limit": config.data.eval_limit, "limit": config.data.limit}
    check_numbers(config.optimisation, config.running, counts=given)
    if config.max_length < 2:
        raise UserError(f"max-length must be >= 2, got {config.max_length}. See layerwise-finetune --help.")
    if config.merge and config.plan.method != "lora":
        raise UserError(f"merge must have LoRA's factors to merge, got --method {config.plan.method}. Leave it out.")
    scenes = "scenes" in (config.data.spec, config.data.eval_spec)
    if not scenes and not (config.data.format_prompts and config.data.apart):
        option = "--in-turn" if config.data.format_prompts else "--no-format-prompts"
        raise UserError(f"{option} must have scenes to act on, got the file {config.data.spec!r}. Leave it out.")
    if config.connector != "keep" and config.plan.method == "lora" and not config.merge:
        raise UserError(
            f"connector must be kept where LoRA becomes an adapter of the base model, got {config.connector!r}. "
            "Add --merge."
        )


def _save(config: TuningConfig, trainer: PlanTrainer, folder: Path, *, is_main: bool) -> None:
    tensors = trainer.full_tensors()
    rounded = config.running.bf16
    if is_main:
        with user_errors(OSError, SafetensorError):
            save_model(
                trainer.llava,
                trainer.resolved,
                tensors,
                folder,
                merge=config.merge,
                reload=(lambda: _opened(config, "cpu", validate=False)) if rounded or trainer.is_fsdp_enabled else None,
            )
