"""One tuning run: ``run_tuning(config)`` checks the options, surveys the data, estimates, trains, scores and saves."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from models.llava import Llava
from records.manifest import read_manifest
from records.open_model import describe_model, open_model
from records.processes import join_processes, own_device
from records.progress import OnProgress, ProgressBars, silent
from records.run import Run, read_timings, writing
from tasks.checksums import read_whole_json
from tasks.errors import UserError, user_errors
from tasks.html import rows_html
from tuning.config import RUN, SCENES, TuningConfig, check_held, check_numbers, is_bf16
from tuning.cost.estimate import Estimate, cost_of_run, estimate_run, measure_first
from tuning.data.prompt_format import PromptFormat
from tuning.data.samples import Samples, Survey, skipped_error, survey_usable, write_skipped
from tuning.data.scene_mix import FIRST_CAPTION_SCENE, SceneMix, SceneQuestions
from tuning.data.sources import Source, Subset, first_of, open_source, spread_over
from tuning.plan.apply import apply_plan
from tuning.plan.choose_layers import describe_choice
from tuning.plan.connector import with_connector
from tuning.plan.resolve import Resolved, resolve
from tuning.training.accelerator import check_launcher
from tuning.training.checkpoint import advise_when_interrupted, last_whole_checkpoint, named_checkpoint
from tuning.training.out_of_memory import advise_when_out_of_memory
from tuning.training.save import bytes_of_model, save_model, write_json
from tuning.training.torch_compile import check_compiling
from tuning.training.train import train
from tuning.training.trainer import PlanTrainer

_PLAN_KEYS, _COST_KEYS = ("trainable", "total"), ("steps", "step_seconds_median", "closed_form_ratio")
_ESTIMATED_FROM = 256  # samples that a dry run reads; their mean length is within a few per cent of the overall mean


class FinishedTuning(NamedTuple):
    """A finished run; its text lists what trained and the cost.

    Example:
        >>> plan = {"trainable": 5, "total": 100}
        >>> cost = {"steps": 2, "step_seconds_median": None, "closed_form_ratio": 0.8}
        >>> str(FinishedTuning(Path("runs/band"), plan, cost)).splitlines()[:2]
        ['trained: 5 of 100 parameters (5.00%)', 'steps:   2']
    """

    folder: Path
    """The run directory, which opens in plain transformers."""
    plan: dict[str, Any]
    """``plan.json``: the plan and the parameters that trained."""
    cost: dict[str, Any]
    """``cost.json``: steps, operations, time and memory."""
    timings: str = ""
    """Where the seconds of the call that finished the run went."""

    def __repr__(self) -> str:
        return "\n".join(f"{name + ':':<9}{value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return rows_html(["", ""], self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        trained, total = self.plan["trainable"], self.plan["total"]
        seconds = self.cost["step_seconds_median"]
        return [
            ("trained", f"{trained:,} of {total:,} parameters ({trained / total:.2%})"),
            ("steps", f"{self.cost['steps']}" + (f", {seconds:.3g} s each" if seconds else "")),
            ("compute", f"{self.cost['closed_form_ratio']:.2f} of full tuning"),
            ("model", str(self.folder)),
            ("cost", str(self.folder / "cost.json")),
            *([("time", self.timings)] if self.timings else []),
        ]


class Prepared(NamedTuple):
    """The checked model, plan and data of a run."""

    llava: Llava
    resolved: Resolved
    samples: Samples
    survey: Survey
    n_samples: int
    """Number of samples in the data; a dry run surveys some of them."""
    eval_sets: dict[str, Samples]
    eval_surveys: dict[str, Survey]
    n_scored: int
    """Number of samples of all evaluation sets; a dry run surveys some of them."""


def run_tuning(
    config: TuningConfig,
    *,
    llava: Llava | None = None,
    source: Source | None = None,
    command: Sequence[str] = (),
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress | None = None,
) -> FinishedTuning | Estimate | None:
    """Train one plan and save the model, or resume a run that was killed.

    Args:
        config: The options.
        llava: The model of ``config``, if it is in memory; a copy is trained.
        source: The samples, if they are in memory; otherwise ``config.data`` is read.
        command: The command line, for the manifest.
        on_note: Called with each line for the user.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If an option, the data or the model cannot be used.

    Example:
        >>> from records.options import ModelOptions
        >>> from tuning.config import DataOptions, PlanOptions
        >>> tiny = ModelOptions(name="random:tiny")
        >>> config = TuningConfig(tiny, PlanOptions(layers="1"), DataOptions(scenes=2), dry_run=True)
        >>> run_tuning(config).steps
        1
    """
    on_progress = on_progress or ProgressBars()
    bf16, folder = is_bf16(config.model), config.folder
    check_launcher(bf16=bf16)
    _check_options(config)
    device = own_device(config.model.device)
    if config.run.compile:
        check_compiling(device, keep_prefix=config.keep_prefix)
    processes = join_processes(device)
    run = Run(folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    resume = named_checkpoint(config.resume, folder)
    if resume is not None and config.overwrite and resume.absolute().parent == folder.absolute():
        raise UserError("resume must not name a checkpoint of the run that --overwrite removes. Leave one of them out.")
    if run.is_finished and not (config.overwrite or config.dry_run or resume):
        before = read_manifest(folder, RUN) or {}
        if before.get("data") == (training_source(config) if source is None else source).digest:
            return finished_tuning(folder) if processes.is_main else None
    given = llava
    with run.timings.stage("load and survey"):
        prepared = prepare_run(config, device, llava=given, source=source, on_note=on_note, on_progress=on_progress)
    llava, resolved, samples, survey, n_samples, eval_sets, eval_surveys, n_scored = prepared
    skipped = {"skipped.csv": survey.skipped, **{f"skipped-{n}.csv": own.skipped for n, own in eval_surveys.items()}}
    for bad in skipped.values():
        if bad and not config.data.skip_bad:
            raise skipped_error(bad)
    estimate = estimate_run(
        config, llava, resolved, samples, survey, processes.world, n_samples=n_samples, n_scored=n_scored,
        device=device,
    )  # fmt: skip
    if config.dry_run:
        return estimate
    data = samples.source.digest
    # The number of processes changes the batch of a step, and so the weights.
    facts = {"settings": config.settings, "model": llava.weight_hash, "data": data, "processes": processes.world}
    optimisation = config.training
    note = on_note if processes.is_main else lambda line: None
    with run.open(processes, on_note=on_note, model=describe_model(llava), data=data):
        if processes.is_main:
            with writing(folder):
                write_json(folder / "plan.json", resolved.to_dict())
                for name, bad in skipped.items():
                    if bad or name == "skipped.csv":
                        write_skipped(folder / name, bad)
        if survey.unread:
            on_note(survey.describe_unread())
        if config.data.follow_links:
            on_note("links in the picture folder are followed, also out of it")
        for name, bad in skipped.items():
            if bad:
                on_note(f"{len(bad)} samples left out, see {folder / name}")
        apply_plan(llava, resolved, seed=optimisation.seed, low_precision=bf16)
        with (
            user_errors(OSError),
            advise_when_out_of_memory(optimisation.batch_size),
            advise_when_interrupted(folder),
        ):
            with run.timings.stage("first batch"):
                measured = measure_first(config, llava, resolved, samples, estimate)
            trained = train(
                llava,
                resolved,
                samples,
                optimisation=optimisation,
                options=config.run,
                folder=folder,
                bf16=bf16,
                by_modality=config.recipe.by_modality,
                keep_prefix=config.keep_prefix,
                eval_every=config.eval_every,
                facts=facts,
                eval_sets=eval_sets,
                resume=resume or last_whole_checkpoint(folder, note),
                model_bytes=bytes_of_model(resolved, merge=config.merge),
                on_note=note,
                on_progress=on_progress if processes.is_main else silent,
                on_trained=lambda trainer: _save(config, trainer, folder, given, is_main=processes.is_main),
                timings=run.timings,
            )
        cost = cost_of_run(config, measured, trained, estimate, llava.device, processes.world)
        if processes.is_main:
            with writing(folder):
                write_json(folder / "cost.json", cost)
            run.finish()
        processes.wait()
    return finished_tuning(folder) if processes.is_main else None


def finished_tuning(folder: Path) -> FinishedTuning:
    """Read a finished run; raise ``UserError`` if ``folder`` holds none."""
    manifest = read_manifest(folder, RUN)
    if manifest is None or manifest.get("finished", True) is None or not (folder / RUN.last).is_file():
        raise UserError(f"run must be a finished run of layerwise-finetune, got {str(folder)!r}. Finish it first.")
    advice = "Start the same command again: it is made anew."
    plan, cost = (read_whole_json(folder / name, advice=advice) for name in ("plan.json", "cost.json"))
    for found, name, keys in ((plan, "plan.json", _PLAN_KEYS), (cost, "cost.json", _COST_KEYS)):
        for key in keys:
            if key not in found:
                raise UserError(f"{name} must hold {key!r}, got none in {str(folder)!r}. {advice}")
    return FinishedTuning(folder, plan, cost, read_timings(folder, RUN))


def prepare_run(
    config: TuningConfig,
    device: str,
    *,
    llava: Llava | None = None,
    source: Source | None = None,
    on_note: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = silent,
) -> Prepared:
    """Load the model, resolve the plan and survey the data; the plan is not applied.

    A dry run loads only the shapes of the model, and surveys samples spread over the data.
    """
    llava = _load(config, device, llava)
    plan = config.layer_plan
    if plan.layers.startswith("auto:"):
        on_note(describe_choice(Path(plan.layers.removeprefix("auto:")), llava.n_layers))
    resolved = resolve(plan, llava)
    with user_errors(ValueError, OSError):
        source = training_source(config) if source is None else source
        scored, how = evaluation_sources(config), scoring_format(config)
        n_samples, n_scored = len(source), sum(len(own) for own in scored.values())
        if config.dry_run:
            source = spread_over(source, _ESTIMATED_FROM)
            scored = {name: spread_over(own, _ESTIMATED_FROM) for name, own in scored.items()}
        survey = survey_usable(llava, source, config.prompt_format, "reading samples", on_progress)
        check_pictured(resolved, survey)
        surveys = {name: survey_usable(llava, own, how, "reading questions") for name, own in scored.items()}
        eval_sets = {name: Samples(llava, own, surveys[name], how) for name, own in scored.items()}
    samples = Samples(llava, source, survey, config.prompt_format)
    return Prepared(llava, resolved, samples, survey, n_samples, eval_sets, surveys, n_scored)


def check_pictured(resolved: Resolved, survey: Survey) -> None:
    """Check that gradients can reach what trains.

    Raises:
        UserError: If only the projector or the vision tower trains, and no sample has a picture.
    """
    needs_pictures = not resolved.layers and all(
        part == "projector" or part.startswith("vision") for part in resolved.plan.train
    )
    if needs_pictures and not survey.pictured[survey.kept].any():
        raise UserError(
            "data must have pictures where only the projector or the vision tower trains, got "
            f"{len(survey.kept)} samples without one: no gradient reaches the weights. Add pictures, or train blocks "
            "with --layers."
        )


def _load(config: TuningConfig, device: str, given: Llava | None) -> Llava:
    """The float32 model before training: a copy of ``given`` if that is not None; in a dry run without values."""
    seed = config.optimisation.seed
    if given is None:
        wide = replace(config.model, dtype="float32")
        llava = open_model(wide, device=device, seed=seed, weights=not config.dry_run)
    else:
        model: Any = deepcopy(given.model)
        llava = replace(given, model=model.to(device, torch.float32))
    return with_connector(llava, config.connector, seed=seed)


def training_source(config: TuningConfig) -> Source:
    """The samples that a run trains on."""
    data = config.data
    scenes = SceneMix(data.scenes, format_prompts=data.format_prompts, apart=not data.in_turn, stage=config.stage)
    source = open_source(data.spec, data.images, scenes=scenes, follow_links=data.follow_links)
    return first_of(source, data.limit)


def evaluation_sources(config: TuningConfig) -> dict[str, Source]:
    """The sources that are scored during training, by name."""
    data = config.data
    if data.eval_spec is None:
        return {}
    if data.eval_spec == SCENES:
        if config.stage == 1:  # a stage-1 model answers no questions, so captions are scored by likelihood
            return {"captions": SceneMix(data.eval_limit, stage=1, first=FIRST_CAPTION_SCENE)}
        return {"seen": SceneQuestions(data.eval_limit, format_prompts=data.format_prompts)}
    source = open_source(data.eval_spec, data.images, follow_links=data.follow_links)
    return {"eval": Subset(source, range(min(data.eval_limit, len(source))))}


def scoring_format(config: TuningConfig) -> PromptFormat:
    """The format of scored samples: captions of scenes in stage 1's format, else LLaVA-1.5's evaluation format.

    Pictures are prepared as in training.
    """
    captions = config.stage == 1 and config.data.eval_spec == SCENES
    # A truncated answer would count as right if the remaining part is right.
    return replace(config.prompt_format, recipe="plain" if captions else "vicuna_v1", on_long="refuse")


def _check_options(config: TuningConfig) -> None:
    data = config.data
    check_numbers(
        config.optimisation,
        config.run,
        others={"scenes": data.scenes, "eval-limit": data.eval_limit, "limit": data.limit},
    )
    if config.eval_every < 0:
        raise UserError(f"eval-every must be >= 0, got {config.eval_every}. See layerwise-finetune --help.")
    if data.max_length < 2:
        raise UserError(f"max-length must be >= 2, got {data.max_length}. See layerwise-finetune --help.")
    check_held(config.model, method=config.plan.method)
    if config.merge and config.model.quantize is not None:
        raise UserError(
            f"merge must be left out with quantize, got {config.model.quantize}. Merging rounds the factors."
        )
    if config.merge and config.plan.method != "lora":
        raise UserError(f"merge must have LoRA factors to merge, got --method {config.plan.method}. Leave it out.")
    if SCENES not in (data.spec, data.eval_spec) and (data.in_turn or not data.format_prompts):
        option = "--in-turn" if data.format_prompts else "--no-format-prompts"
        raise UserError(f"{option} must have scenes to act on, got the file {data.spec!r}. Leave it out.")
    if config.connector != "keep" and config.plan.method == "lora" and not config.merge:
        raise UserError(
            f"connector must be kept where LoRA becomes an adapter of the base model, got {config.connector!r}. "
            "Add --merge."
        )


def _save(config: TuningConfig, trainer: PlanTrainer, folder: Path, given: Llava | None, *, is_main: bool) -> None:
    tensors = trainer.full_tensors()
    changed = is_bf16(config.model) or trainer.is_sharded  # then the frozen weights must be loaded again
    if is_main:
        with user_errors(OSError, SafetensorError):
            save_model(
                trainer.llava,
                trainer.resolved,
                tensors,
                folder,
                merge=config.merge,
                reload=(lambda: _load(config, "cpu", given)) if changed else None,
                preprocess=config.prompt_format.preprocess,
                base=config.model.name,
            )
