"""The patch sweep: every cell of a plan on every pair, from pictures to table and figure.

finished = run_patch_sweep(PatchConfig(InterventionOptions("patch", sites=("resid_pre",))))
finished.results, finished.figures[0]
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import figures
from interventions.attention import AttentionPlan, plan_attention, write_attention
from interventions.batch_values import BatchValues
from interventions.caption_batch import references, run_captions
from interventions.cell_statistics import first_bad, list_errors, list_values, summarise_cells
from interventions.config import ERROR_TABLE, RUN, PatchConfig
from interventions.estimate import FIGURE_SECONDS, OVERHEAD, VALUE_SECONDS, flops_of_pair
from interventions.metrics import UNDEFINED_BELOW, answer_tokens
from interventions.operations.choose_runs import unchanged_run
from interventions.operations.dataset_statistics import collect_statistics
from interventions.operations.directions import fitting_direction, load_directions
from interventions.pairs import SCENES, Pair, Pairs, check_scenes, load_pairs
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import FLOW, SteerOptions, TransplantOptions
from interventions.report_table import render_summary
from interventions.run_batch import resampled_pairs, run_batch, run_transplants
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import to_png
from records.manifest import commit
from records.open_model import describe_model, load_seconds, open_model, other_model
from records.processes import Processes, join_processes, matmul_speed, own_device
from records.progress import OnProgress, PartProgress, ProgressBars
from records.run import FinishedRun, Run, check_space, free_bytes, read_timings, writing
from records.tables import read_results, read_table
from records.timings import describe_estimate
from tasks.checksums import is_whole
from tasks.errors import UserError
from tasks.prompts import vicuna_v1
from tasks.readers.media import describe_unread

_MOST_PICTURES = 24  # pairs whose pictures are written beside their maps of patches
_ROW = 40  # upper bound of the bytes of a row of values.parquet and its copy in the files of batches


@dataclass(frozen=True)
class PatchEstimate:
    """The cost of a sweep: number of pairs and of cells, time by stage, bytes to write, and free bytes on the disk.

    ``stages`` are named as in the manifest's ``timings``. The runs are estimated from their matrix products and the
    measured speed of one product; a cell of engine ``incremental`` computes only what follows its change.
    """

    n_pairs: int
    n_cells: int
    stages: Mapping[str, float]
    size: int
    free: int

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole sweep, within a factor of two on the machine of the calibration."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.n_pairs} pairs, {self.n_cells} cells each: {self.size / 1e6:.1f} MB of values "
            f"({self.free / 1e9:.1f} GB free), {describe_estimate(self.stages)}"
        )


def run_patch_sweep(
    config: PatchConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | PatchEstimate | None:
    """Run a sweep, or resume one that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the estimate before the sweep starts.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If the settings, the data or the model cannot be used.

    Example:
        >>> from interventions.config import InterventionOptions, PairOptions
        >>> from records.options import ModelOptions
        >>> knockout = InterventionOptions("knockout", tokens=("image->last",))
        >>> config = PatchConfig(knockout, ModelOptions("random:tiny"), PairOptions(limit=2), dry_run=True)
        >>> run_patch_sweep(config).n_pairs
        2
    """
    on_progress = on_progress or ProgressBars()
    _check_settings(config)
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    # Invalid pairs and directions raise before the model is loaded; scenes are drawn at the size of its pictures.
    pairs = load_pairs(config.pairs, seed=config.seed) if config.pairs.spec != SCENES else None
    if pairs is None:
        check_scenes(config.pairs, seed=config.seed)
    file = config.intervention.steer_file
    directions = {} if file is None else load_directions(file)
    device = own_device(config.model.device)
    processes = join_processes(device)
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    sweep = _prepare(config, llava, device, pairs, directions)
    estimate = _estimate(sweep, device)
    if config.dry_run:
        return estimate
    check_space(estimate.size, config.folder, what="values", advice="Use fewer pairs, layers or tokens.")
    on_note(str(estimate))
    if sweep.pairs.unread:
        on_note(describe_unread(sweep.pairs.unread))
    model = describe_model(llava)
    data = {"name": sweep.pairs.name, "digest": sweep.pairs.digest, "n_pairs": len(sweep.pairs.pairs)}
    if sweep.donor is not None:
        model["donor"] = sweep.donor.weight_hash
    if file is not None:
        data["directions"] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    with run.open(processes, on_note=on_note, model=model, data=data):
        if processes.is_main:
            with writing(config.folder):
                _write_pairs(sweep, on_note)
                if sweep.attention is not None:
                    write_attention(llava, sweep.attention, config.folder)
        with run.timings.stage("runs"):
            _run_batches(sweep, processes, on_progress, on_note)
        processes.wait()
        if not processes.is_main:
            return None
        if not run.is_finished:
            with writing(config.folder), run.timings.stage("tables"):
                results = _write_tables(sweep)
            run.finish(results)
            with run.drawing(), writing(config.folder):
                figures.drawn_figures(config.folder, again=True)
        return finished_patch_sweep(config.folder)


def finished_patch_sweep(folder: Path) -> FinishedRun:
    """The finished run in ``folder``, with its figures drawn; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    with writing(folder):
        drawn = figures.drawn_figures(folder)
    notes: list[str] = []
    if (folder / ERROR_TABLE).is_file():
        notes = [
            f"against exact patching, {row['metric'].replace('_', ' ')}: correlation {row['correlation']:.2f}, mean "
            f"error {row['relative_error']:.0%} of the mean exact change (n = {row['n']})"
            for row in read_table(folder / ERROR_TABLE).to_dict("records")
        ]
    return FinishedRun(folder, results, render_summary(results), drawn, tuple(notes), timings=read_timings(folder, RUN))


@dataclass(frozen=True, eq=False)
class _Sweep:
    """The cells, pairs and batches of a sweep.

    ``llava`` is the recipient of transplants. ``resampled`` holds the pairs with other clean pictures, for resample
    ablation; ``batches`` the indices of the pairs of each batch; ``first`` the clean inputs of the first batch;
    ``attention`` what is saved of the edges that a knockout of single heads cuts.
    """

    config: PatchConfig
    llava: Llava
    donor: Llava | None
    specs: tuple[CellSpec, ...]
    pairs: Pairs
    resampled: Sequence[Pair] | None
    directions: Mapping[str, Tensor]
    batches: tuple[range, ...]
    first: Inputs
    attention: AttentionPlan | None = None

    def pairs_of(self, batch: int) -> list[Pair]:
        """The pairs of a batch."""
        return [self.pairs.pairs[number] for number in self.batches[batch]]

    def path(self, batch: int) -> Path:
        """The file of a batch."""
        return self.config.folder / "cells" / f"{batch:05d}.safetensors"

    def read(self, batch: int) -> BatchValues | None:
        """The stored values of a batch; None if it has not been run."""
        shape = len(self.specs), len(self.config.plan.metrics), len(self.batches[batch])
        return BatchValues.read(self.path(batch), shape, exact=self.is_compared(batch))

    def is_compared(self, batch: int) -> bool:
        """True for the first batch of attribution, which is patched exactly too, to measure the estimate's error."""
        return self.config.plan.op == "attribute" and batch == 0


def _prepare(
    config: PatchConfig, llava: Llava, device: str, pairs: Pairs | None, directions: Mapping[str, Tensor]
) -> _Sweep:
    """The cells and pairs of the sweep; ``pairs`` None draws scenes at the model's size."""
    options = config.plan.options
    donor = None
    if isinstance(options, TransplantOptions):
        donor = other_model(config.model, options.donor, device=device, seed=config.seed, weights=not config.dry_run)
    specs = tuple(config.plan.cells(llava))
    if pairs is None:
        question = vicuna_v1("?")
        pairs = load_pairs(
            config.pairs, seed=config.seed, size=llava.image_size,
            length=lambda answer: len(answer_tokens(llava, question, answer)),
        )  # fmt: skip
    n = len(pairs.pairs)
    batches = tuple(range(at, min(at + config.batch_size, n)) for at in range(0, n, config.batch_size))
    examples = [pairs.pairs[number].clean for number in batches[0]]
    first = prepare(llava, examples, preprocess=config.pairs.preprocess, answers=True)
    masks = Masks(llava, first, examples)
    for part, group in {(spec.part, end) for spec in specs if spec.tokens for end in spec.tokens.split(FLOW)}:
        masks.at(part, group)
    if isinstance(options, SteerOptions):
        for site in sorted({site for spec in specs for site in spec.sites}):
            fitting_direction(directions, options.direction, site, llava, first)
    attention = None
    if config.intervention.saves_attention:
        attention = plan_attention(
            llava, specs, pairs.pairs, wanted=config.intervention.attention, preprocess=config.pairs.preprocess
        )
    resampled = resampled_pairs(config.plan, pairs.pairs)
    if config.caption_tokens:
        references([pair.clean for pair in pairs.pairs])  # captions that are missing raise before the first run
    return _Sweep(config, llava, donor, specs, pairs, resampled, directions, batches, first, attention)


def _batch_runner(sweep: _Sweep) -> Callable[[int, Callable[[], None]], BatchValues]:
    """A function that runs one batch, and calls another after each cell. Statistics over the data are computed here."""
    llava, donor, plan, preprocess = sweep.llava, sweep.donor, sweep.config.plan, sweep.config.pairs.preprocess
    if donor is not None:
        return lambda batch, on_cell: run_transplants(
            llava, donor, plan, sweep.specs, sweep.pairs_of(batch), preprocess=preprocess, on_cell=on_cell
        )
    statistics = collect_statistics(
        plan, llava, [pair.clean for pair in sweep.pairs.pairs], specs=sweep.specs, directions=sweep.directions,
        batch_size=sweep.config.batch_size, preprocess=preprocess,
    )  # fmt: skip
    others = sweep.resampled
    if sweep.config.caption_tokens:
        captions = references([pair.clean for pair in sweep.pairs.pairs])
        return lambda batch, on_cell: run_captions(
            llava, statistics, sweep.specs, sweep.pairs_of(batch), captions, sweep.batches[batch],
            resampled=None if others is None else [others[number] for number in sweep.batches[batch]],
            new_tokens=sweep.config.caption_tokens, preprocess=preprocess, on_cell=on_cell,
        )  # fmt: skip
    return lambda batch, on_cell: run_batch(
        llava, statistics, sweep.specs, sweep.pairs_of(batch),
        resampled=None if others is None else [others[number] for number in sweep.batches[batch]],
        preprocess=preprocess, exact=sweep.is_compared(batch), on_cell=on_cell,
    )  # fmt: skip


def _check_settings(config: PatchConfig) -> None:
    if config.batch_size < 1:
        raise UserError(f"batch-size must be >= 1, got {config.batch_size}.")
    if config.seed < 0:
        raise UserError(f"seed must be >= 0, got {config.seed}.")
    if config.caption_tokens and config.pairs.spec == SCENES:
        raise UserError("data must have captions for metric cider, got scenes. Use benchmark:caption=FOLDER.")
    if config.new_tokens is not None and config.new_tokens < 1:
        raise UserError(f"new-tokens must be >= 1, got {config.new_tokens}.")
    if config.new_tokens is not None and not config.caption_tokens:
        raise UserError("new-tokens must go with metric cider, got another metric. Leave it out.")
    if config.plan.op == "steer" and config.intervention.steer_file is None:
        raise UserError("steer-file must be given for op 'steer', got none. Save a direction as safetensors first.")


def _estimate(sweep: _Sweep, device: str) -> PatchEstimate:
    config, llava, plan = sweep.config, sweep.llava, sweep.config.plan
    n, n_cells = len(sweep.pairs.pairs), len(sweep.specs)
    speed = matmul_speed(device, llava.dtype)
    runs = OVERHEAD * n * flops_of_pair(plan, llava, sweep.specs, sweep.first, sweep.pairs_of(0), config.caption_tokens)
    runs /= speed
    values = n * n_cells * len(plan.metrics)
    stages = {
        "load": load_seconds(llava),
        "runs": runs,
        "tables": values * VALUE_SECONDS,
        "figures": FIGURE_SECONDS,
    }
    return PatchEstimate(
        n_pairs=n, n_cells=n_cells, stages=stages, free=free_bytes(config.folder),
        size=values * _ROW + (0 if sweep.attention is None else sweep.attention.n_bytes),
    )  # fmt: skip


def _write_pairs(sweep: _Sweep, on_note: Callable[[str], None]) -> None:
    """Write ``pairs.parquet``, one row for each pair, and the clean pictures as the model gets them.

    ``picture.png`` is that of the first pair. If single patches are changed, ``pictures/<k>.png`` are those of the
    first pairs, whose maps they belong to; likewise for the pairs whose attention is saved.
    """
    rows = [
        {"id": p.id, "question": p.clean.question, "answer": p.clean.answer, "foil": p.foil, "batch": batch}
        for batch in range(len(sweep.batches))
        for p in sweep.pairs_of(batch)
    ]
    folder, preprocess = sweep.config.folder, sweep.config.pairs.preprocess
    commit(folder / "pairs.parquet", pd.DataFrame(rows).to_parquet(index=False))
    _write_picture(sweep.llava, sweep.first, folder / "picture.png")
    by_patch = any(spec.tokens.startswith("patch(") for spec in sweep.specs if spec.tokens)
    shown = max(_MOST_PICTURES if by_patch else 0, 0 if sweep.attention is None else len(sweep.attention.pairs))
    if shown:
        (folder / "pictures").mkdir(exist_ok=True)
        for k, pair in enumerate(sweep.pairs.pairs[:shown]):
            path = folder / "pictures" / f"{k}.png"
            if not is_whole(path):
                if path.is_file():
                    on_note(f"{path.relative_to(folder)} is damaged: it is made anew")
                _write_picture(sweep.llava, prepare(sweep.llava, [pair.clean], preprocess=preprocess), path)


def _write_picture(llava: Llava, inputs: Inputs, path: Path) -> None:
    """Write the first example's first picture; nothing if it has none."""
    if inputs.pixel_values is not None and inputs.image_of[0]:
        commit(path, to_png(llava, inputs.pixel_values[inputs.image_of[0][0]]))


def _run_batches(sweep: _Sweep, processes: Processes, on_progress: OnProgress, on_note: Callable[[str], None]) -> None:
    """Run and write every batch of this rank (rank, rank + world, ...) that has no file yet."""
    plan = sweep.config.plan
    owned = range(processes.rank, len(sweep.batches), processes.world)
    cells = len(sweep.specs)
    stage, total = f"{plan.op}, cells", cells * sum(len(sweep.batches[batch]) for batch in owned)
    missing = [batch for batch in owned if sweep.read(batch) is None]
    if len(missing) < len(owned):
        on_progress(stage, total - cells * sum(len(sweep.batches[batch]) for batch in missing), total)
    run = _batch_runner(sweep) if missing else None
    for batch in missing:
        assert run is not None
        if sweep.path(batch).is_file():
            on_note(f"{sweep.path(batch).relative_to(sweep.config.folder)} is damaged: its pairs are run again")
        ids = [pair.id for pair in sweep.pairs_of(batch)]
        part = PartProgress(on_progress, stage, size=cells * len(ids), total=total)
        found = run(batch, partial(part.add, len(ids)))
        for values in (found.clean, found.corrupt, found.values):
            bad = first_bad(values, plan.metrics, ids)
            if bad is not None:
                raise UserError(
                    f"metric must be finite, got another value for {bad}. Check the weights, or use float32."
                )
        with writing(sweep.config.folder):
            found.write(sweep.path(batch))
        part.finish()


def _write_tables(sweep: _Sweep) -> pd.DataFrame:
    """Write ``values.parquet`` and the comparison of attribution; return the results."""
    config, plan = sweep.config, sweep.config.plan
    found = []
    for batch in range(len(sweep.batches)):
        saved = sweep.read(batch)
        if saved is None:
            raise UserError(
                f"batch must be complete, got none in {str(sweep.path(batch))!r}. Start again: the others are kept."
            )
        found.append(saved)
    values, clean, corrupt = (
        torch.cat([getattr(part, name) for part in found], -1) for name in ("values", "clean", "corrupt")
    )
    bound, unchanged = UNDEFINED_BELOW[sweep.llava.dtype], unchanged_run(plan)
    ids = [pair.id for pair in sweep.pairs.pairs]
    listed = list_values(sweep.specs, plan.metrics, values, clean, corrupt, ids=ids, undefined_below=bound)
    commit(config.folder / "values.parquet", listed.to_parquet(index=False))
    if found[0].exact is not None:
        errors = list_errors(plan.metrics, found[0], unchanged)
        commit(config.folder / ERROR_TABLE, errors.to_csv(index=False).encode())
    return summarise_cells(
        sweep.specs, plan.metrics, values, clean, corrupt, model=config.model.name, unchanged=unchanged,
        undefined_below=bound, seed=config.seed,
    )  # fmt: skip
