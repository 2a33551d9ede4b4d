"""The patch sweep: every cell of a plan on every pair, from pictures to table and figure.

    finished = run_patch_sweep(PatchConfig(build_plan("patch", sites=["resid_pre"])))
    finished.results, finished.figures[0].png

``run_patch_sweep`` checks everything, runs batch by batch (resuming what a killed run left), and writes the run
directory.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import figures
from figures.saved import FigurePaths
from interventions.batch import unchanged_run
from interventions.config import ERROR_TABLE, RUN, PatchConfig
from interventions.metrics import UNDEFINED_BELOW
from interventions.operations.steering import load_directions
from interventions.pairs import load_pairs
from interventions.report_table import render_summary
from interventions.results import first_bad, list_errors, list_values, summarise_cells
from interventions.work import Work, batch_runner, plan_work
from models.inputs import prepare
from models.llava import Llava
from models.pixels import to_png
from records.html import run_html
from records.manifest import check_folder, new_manifest, open_run, read_manifest, write_atomically, write_manifest
from records.model import open_model
from records.processes import Processes, join_processes, matmul_speed, own_device
from records.progress import OnProgress, shown_progress
from records.tables import clock, read_results, saved_results, write_results
from tasks.errors import UserError, user_errors

_RESERVE = 64 * 1024**2  # bytes left to the results, the figures and everybody else
_ROW = 40  # bytes of a row of values.parquet at most, and of its copy in the batches' files


@dataclass(frozen=True)
class PatchEstimate:
    """What a sweep will take.

    Args:
        n_pairs: Pairs.
        n_cells: Interventions on each.
        seconds: Of the two base runs of every pair, from the products they need and the speed of one timed now. Under
            ``incremental`` a cell takes a fraction of a run, under ``full`` a whole one, which is counted.
        size: Bytes that it writes.
        free: Bytes free.
    """

    n_pairs: int
    n_cells: int
    seconds: float
    size: int
    free: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.n_pairs} pairs, {self.n_cells} cells each: {self.size / 1e6:.1f} MB of values "
            f"({self.free / 1e9:.1f} GB free), runs at least {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class FinishedPatchSweep:
    """A run that is done.

    Args:
        folder: The run directory.
        results: The table, as ``docs/results.md`` describes it.
        figures: The main one first.
    """

    folder: Path
    results: pd.DataFrame
    figures: tuple[FigurePaths, ...]

    def _repr_html_(self) -> str:
        """For notebooks: the summary, the main figure, and where the files are."""
        figure = self.figures[0].png if self.figures else None
        return run_html(render_summary(self.results), figure=figure, folder=self.folder)


def run_patch_sweep(
    config: PatchConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedPatchSweep | PatchEstimate | None:
    """Runs a sweep, or takes up one that was cut.

    Args:
        config: What to do.
        llava: The model that ``config`` names, if it is in memory already; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Told how it goes, as (stage, newly done, total); None shows it where this is a notebook.
        on_note: Told what a user should know before it starts: the estimate.

    Returns:
        The finished run; with ``dry_run`` the estimate; None on the processes that only help.

    Raises:
        UserError: If anything that the user gave cannot be used; the sentence says what to do.
    """
    started = time.time()
    on_progress = on_progress or shown_progress()
    manifest = new_manifest(RUN, config.settings)
    _check_settings(config)
    check_folder(config.folder, manifest, RUN, overwrite=config.overwrite)
    pairs = load_pairs(config.pairs, seed=config.seed)  # refuses what cannot be used before a model is loaded
    directions = _directions(config)
    with user_errors(ValueError):
        device = own_device(config.model.device)
    processes = join_processes(device)
    llava = open_model(config.model, device=device, seed=config.seed, given=llava)
    work = plan_work(config, pairs, llava, device, None if directions is None else directions.tensors)
    estimate = _estimate(config, work)
    if config.dry_run:
        return estimate
    if estimate.size + _RESERVE > estimate.free:
        raise UserError(
            f"values must fit on the disk, got {estimate.size / 1e6:.0f} MB for {estimate.free / 1e6:.0f} MB free at "
            f"{str(config.folder)!r}. Use fewer pairs, layers or tokens."
        )
    on_note(str(estimate))
    manifest["model"] = {"id": llava.id, "revision": llava.revision, "weight_hash": llava.weight_hash}
    manifest["data"] = {"name": work.pairs.name, "digest": work.pairs.digest, "n_pairs": len(work.pairs.pairs)}
    if work.donor is not None:
        manifest["model"]["donor"] = work.donor.weight_hash
    if directions is not None:
        manifest["data"]["directions"] = directions.digest
    about: dict[str, Any] = {"command": list(command), "started": clock(started), "finished": None, "seconds": None}
    if processes.is_main:
        open_run(config.folder, {**manifest, **about}, RUN, overwrite=config.overwrite)
        with _writing(config.folder):
            _write_pairs(config, work)
    processes.wait()
    _run_batches(config, work, None if directions is None else directions.tensors, processes, on_progress)
    processes.wait()
    if not processes.is_main:
        return None
    if saved_results(config.folder) is None:
        with _writing(config.folder):
            _write_tables(config, work)
            before = read_manifest(config.folder, RUN) or {}
            about.update(
                started=before.get("started"), finished=clock(time.time()), seconds=round(time.time() - started, 1)
            )
            write_manifest(config.folder, {**manifest, **about})
    with _writing(config.folder):
        drawn = figures.draw_run(config.folder)
    return FinishedPatchSweep(config.folder, read_results(config.folder, RUN), drawn)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the file system refuses, in one sentence; a run that was cut goes on where it stopped."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"values must fit on the disk, got {error.strerror or error} at {str(folder)!r}. "
            "Free some space and start again: finished batches are kept."
        ) from error


@dataclass(frozen=True, eq=False)
class _Directions:
    tensors: Mapping[str, Tensor]
    digest: str


def _check_settings(config: PatchConfig) -> None:
    if config.batch_size < 1:
        raise UserError(f"batch-size must be >= 1, got {config.batch_size}. One pair at a time is the least.")
    if config.seed < 0:
        raise UserError(f"seed must be >= 0, got {config.seed}. Any other integer will do.")
    if config.plan.op == "steer" and config.directions is None:
        raise UserError("steer-file must be given for op 'steer', got none. Save a direction as safetensors first.")


def _directions(config: PatchConfig) -> _Directions | None:
    if config.directions is None:
        return None
    with user_errors(ValueError):
        tensors = load_directions(config.directions)
    return _Directions(tensors, hashlib.sha256(config.directions.read_bytes()).hexdigest()[:16])


def _estimate(config: PatchConfig, work: Work) -> PatchEstimate:
    llava = work.llava
    n, n_cells = len(work.pairs.pairs), len(work.specs)
    inputs = prepare(llava, [work.pairs.pairs[0].clean], preprocess=config.pairs.preprocess, answers=True)
    in_blocks = sum(p.numel() for p in llava.blocks.parameters())
    in_tower = sum(p.numel() for p in llava.vision_blocks.parameters())
    a_run = 2 * (inputs.n_positions * in_blocks + llava.n_image_tokens * in_tower)
    whole = config.plan.engine == "full" or config.plan.op == "transplant"
    runs = 2 + (n_cells if whole else 0)
    existing = config.folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return PatchEstimate(
        n_pairs=n,
        n_cells=n_cells,
        seconds=n * runs * a_run / matmul_speed(llava.device, llava.dtype),
        size=n * n_cells * len(config.plan.metrics) * _ROW,
        free=shutil.disk_usage(existing).free,
    )


def _write_pairs(config: PatchConfig, work: Work) -> None:
    """``pairs.parquet``, one row for each pair in their order, and ``picture.png``, the first as the model sees it."""
    rows = [
        {"id": p.id, "question": p.clean.question, "answer": p.clean.answer, "foil": p.foil, "batch": batch}
        for batch, numbers in enumerate(work.batches)
        for p in (work.pairs.pairs[number] for number in numbers)
    ]
    write_atomically(config.folder / "pairs.parquet", pd.DataFrame(rows).to_parquet(index=False))
    first = [work.pairs.pairs[0].clean]
    pixels = prepare(work.llava, first, preprocess=config.pairs.preprocess).pixel_values
    if pixels is None:
        return
    write_atomically(config.folder / "picture.png", to_png(work.llava, pixels[0]))


def _run_batches(
    config: PatchConfig,
    work: Work,
    directions: Mapping[str, Tensor] | None,
    processes: Processes,
    on_progress: OnProgress,
) -> None:
    """Runs and commits every batch that this process owns (r, r + n, ...) and that is not there yet."""
    owned = [batch for batch in range(len(work.batches)) if batch % processes.world == processes.rank]
    total = sum(len(work.batches[batch]) for batch in owned)
    missing = []
    for batch in owned:
        if work.read(config, batch) is None:
            missing.append(batch)
        else:
            on_progress(config.plan.op, len(work.batches[batch]), total)
    if not missing:
        return
    run = batch_runner(config, work, directions)
    for batch in missing:
        pairs = [work.pairs.pairs[number] for number in work.batches[batch]]
        with user_errors(ValueError):
            found = run(work.batches[batch])
        for values in (found.clean, found.corrupt, found.values):
            bad = first_bad(values, config.plan.metrics, [pair.id for pair in pairs])
            if bad is not None:
                raise UserError(
                    f"metric must be finite, got another value for {bad}. Check the weights, or use float32."
                )
        with _writing(config.folder):
            found.write(work.path(config.folder, batch))
        on_progress(config.plan.op, len(pairs), total)


def _write_tables(config: PatchConfig, work: Work) -> None:
    """``values.parquet``, then the results."""
    found = []
    for batch in range(len(work.batches)):
        saved = work.read(config, batch)
        if saved is None:
            raise UserError(
                f"batch must be whole, got none in {str(work.path(config.folder, batch))!r}. Start again: the others "
                "are kept."
            )
        found.append(saved)
    values, clean, corrupt = (
        torch.cat([getattr(part, name) for part in found], -1) for name in ("values", "clean", "corrupt")
    )
    bound = UNDEFINED_BELOW[work.llava.dtype]
    ids = [pair.id for pair in work.pairs.pairs]
    metrics = config.plan.metrics
    listed = list_values(work.specs, metrics, values, clean, corrupt, ids=ids, undefined_below=bound)
    write_atomically(config.folder / "values.parquet", listed.to_parquet(index=False))
    if found[0].exact is not None:
        errors = list_errors(metrics, found[0], unchanged_run(config.plan))
        write_atomically(config.folder / ERROR_TABLE, errors.to_csv(index=False).encode())
    results = summarise_cells(
        work.specs, metrics, values, clean, corrupt, model=config.model.name, unchanged=unchanged_run(config.plan),
        undefined_below=bound, seed=config.seed,
    )  # fmt: skip
    write_results(config.folder, results)
