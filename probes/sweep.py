"""The probe sweep: which targets can be read at which site, from pictures to table and figure.

    finished = run_sweep(SweepConfig(data=DataOptions(limit=200)))
    finished.results, finished.figure.png

``run_sweep`` checks everything, captures (resuming what a killed run left), fits, and writes the run directory.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import figures
from figures.saved import FigurePaths
from models.llava import Llava
from models.loading.load import load
from models.sites import Site, depth, parse_sites
from probes.activations.fill import fill_store, layouts, shard_size, stored_dtype, width
from probes.activations.store import STORES, ActivationStore, SizeEstimate, estimate_size
from probes.config import RUN, TEXT_TOKENS, SweepConfig
from probes.evaluation.folds import Plan
from probes.fit_sites import fit_sites
from probes.maps.map_plan import MapPlan, plan_maps
from probes.maps.maps import TABLE, map_steps, write_maps
from probes.report_table import render_summary
from probes.selection import Selection, at_size, plan_for, select
from records.html import run_html
from records.manifest import check_folder, new_manifest, open_run, read_manifest, write_atomically, write_manifest
from records.model import open_model
from records.processes import Processes, join_processes, matmul_speed, own_device
from records.progress import OnProgress, shown_progress
from records.tables import clock, read_results, saved_results, write_results
from tasks.errors import UserError, user_errors

DEFAULT_SITES = (
    "vision:resid_post",
    "projector:in",
    "projector:linear_1",
    "projector:act",
    "projector:out",
    "blocks.0.hook_resid_pre",
    "resid_post",
)
_CONTROL_SEED = 2**16  # added to the seed, so that the control is never the draw that a random model was
FIGURE = "score_by_layer"


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take.

    Args:
        size: Bytes that it writes, and bytes free.
        seconds: Of captures, from the products they need and the speed of one product timed now; a lower bound.
        n_examples: Examples, transfer included.
        n_sites: Sites.
    """

    size: SizeEstimate
    seconds: float
    n_examples: int
    n_sites: int

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.n_examples} examples at {self.n_sites} sites: {self.size.activations / 1e6:.1f} MB of activations "
            f"({self.size.free / 1e9:.1f} GB free), capture at least {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class FinishedSweep:
    """A run that is done.

    Args:
        folder: The run directory.
        results: The table, as ``docs/results.md`` describes it.
        figure: Score by layer.
        skipped: Examples left out because of their pictures.
    """

    folder: Path
    results: pd.DataFrame
    figure: FigurePaths
    skipped: int

    def _repr_html_(self) -> str:
        """For notebooks: the summary, the figure, and where the files are."""
        notes = [f"{self.skipped} examples left out, see skipped.csv"] if self.skipped else []
        return run_html(render_summary(self.results), figure=self.figure.png, folder=self.folder, notes=notes)


def run_sweep(
    config: SweepConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedSweep | Estimate | None:
    """Runs a sweep, or takes up one that was cut.

    Args:
        config: What to do.
        llava: The model that ``config`` names, if it is in memory already; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Told how it goes, as (stage, newly done, total); None shows it where this is a notebook.
        on_note: Told what a user should know before it starts: the estimate, and what is left out.

    Returns:
        The finished run; with ``dry_run`` the estimate; None on the processes that only help to capture.

    Raises:
        UserError: If anything that the user gave cannot be used; the sentence says what to do.
    """
    started = time.time()
    on_progress = on_progress or shown_progress()
    manifest = new_manifest(RUN, config.settings)
    _check_settings(config)
    check_folder(config.folder, manifest, RUN, overwrite=config.overwrite)
    selection = select(config)
    for group in selection.groups:
        _check_probe(
            plan_for(selection, group, config), config
        )  # refuses what cannot be fitted before hours of capture
    maps = plan_maps(selection, config)
    with user_errors(ValueError):
        device = own_device(config.model.device)
    processes = join_processes(device)
    llava = open_model(config.model, device=device, seed=config.seed, given=llava)
    selection = at_size(selection, config, llava.image_size)
    sites = _sites(config, llava)
    estimate = _estimate(config, llava, selection, sites)
    if config.dry_run:
        return estimate
    if not estimate.size.fits:
        raise UserError(
            f"activations must fit on the disk, got {estimate.size.activations / 1e6:.0f} MB for "
            f"{estimate.size.free / 1e6:.0f} MB free at {str(config.folder)!r}. Use fewer sites or "
            "examples, or --store-dtype float16."
        )
    for note in (str(estimate), *maps.notes):
        on_note(note)
    manifest["model"] = {"id": llava.id, "revision": llava.revision, "weight_hash": llava.weight_hash}
    manifest["data"] = {"name": selection.name, "digest": selection.digest, "n_examples": len(selection.examples)}
    about: dict[str, Any] = {"command": list(command), "started": clock(started), "finished": None, "seconds": None}
    if processes.is_main:
        open_run(config.folder, {**manifest, **about}, RUN, overwrite=config.overwrite)
        _write_examples(config, llava, selection)
    processes.wait()
    depths = [depth(site, llava) for site in sites]
    store = _capture(llava, config, selection, sites, processes, on_progress)
    processes.wait()
    if processes.is_main:
        _map(llava, store, sites, depths, selection, maps, config, on_progress)
    control_store = _capture_control(llava, config, selection, sites, processes, on_progress)
    del llava
    processes.wait()
    if not processes.is_main:
        return None
    results = saved_results(config.folder)
    if results is None:
        total = len(sites) * len(selection.groups)
        results = fit_sites(
            store, control_store, sites, depths, selection, config, lambda n: on_progress("fitting probes", n, total)
        )
        write_results(config.folder, results)
        before = read_manifest(config.folder, RUN) or {}
        about.update(
            started=before.get("started"), finished=clock(time.time()), seconds=round(time.time() - started, 1)
        )
        write_manifest(config.folder, {**manifest, **about})
    figure = figures.draw_run(config.folder)[0]
    return FinishedSweep(config.folder, read_results(config.folder, RUN), figure, len(selection.skipped))


def _check_probe(plan: Plan, config: SweepConfig) -> None:
    """Refuses a probe that cannot be fitted to what the plan holds."""
    for target in plan.targets.values():
        if config.probing.probe == "mass-mean" and target.kind == "continuous":
            raise UserError(f"probe must not be mass-mean for the continuous target {target.name!r}. Use ridge.")
        training = (plan.fitted & (target.fold != k) for k in range(plan.folds))
        if config.probing.probe == "mlp" and any(len(np.unique(plan.groups[rows])) < 2 for rows in training):
            raise UserError("probe mlp must have two groups in every training set, got one. Use more groups or folds.")


def figure_paths(folder: Path) -> FigurePaths:
    """Where the figure of a run is, drawn or not."""
    stem = folder / "figures" / FIGURE
    return FigurePaths(stem.with_suffix(".png"), stem.with_suffix(".svg"))


def _check_settings(config: SweepConfig) -> None:
    if config.batch_size < 1:
        raise UserError(f"batch-size must be >= 1, got {config.batch_size}. One example at a time is the least.")
    if config.probing.maps is not None and config.probing.maps < 0:
        raise UserError(f"maps must be >= 0, got {config.probing.maps}. 0 makes none.")
    if config.seed < 0:
        raise UserError(f"seed must be >= 0, got {config.seed}. Any other integer will do.")
    if config.probing.folds < 2:
        raise UserError(f"folds must be >= 2, got {config.probing.folds}. One fold has nothing to be tested on.")
    if config.sites.pool == "none" and config.sites.tokens != "last":
        raise UserError(
            f"pool must be mean, max or box for tokens {config.sites.tokens!r}, got 'none'. A probe reads one "
            "activation of an example; only --tokens last leaves one without pooling."
        )


def _sites(config: SweepConfig, llava: Llava) -> list[Site]:
    """The sites asked for; by default those that the tokens exist at."""
    text = config.sites.tokens in TEXT_TOKENS
    default = tuple(spec for spec in DEFAULT_SITES if not (text and spec.startswith(("vision:", "projector:"))))
    with user_errors(ValueError):
        sites = parse_sites(config.sites.specs or default, config.sites.layers, llava)
    for site in sites:
        if site.name == "pattern":
            raise UserError(
                f"site must have the same width in every example, got {str(site)!r}. Patterns are as wide as the "
                "prompt is long; probe z or attn_out."
            )
        if text and site.part != "language_model":
            raise UserError(
                f"site must be in the language model for tokens {config.sites.tokens!r}, got {str(site)!r}. The "
                "vision tower and the projector hold image tokens alone."
            )
    return sites


def _has_control_model(config: SweepConfig) -> bool:
    """Whether a randomly initialised model is run beside the model: not for models that are random themselves."""
    return config.probing.controls and not config.model.name.startswith("random:")


def _estimate(config: SweepConfig, llava: Llava, selection: Selection, sites: Sequence[Site]) -> Estimate:
    n = len(selection.examples)
    n_rows = n + (selection.n_fitted if _has_control_model(config) else 0)
    size = estimate_size(
        {site: width(site, llava) for site in sites},
        n_rows=n_rows,
        n_groups=len(selection.groups),
        dtype=stored_dtype(config, llava),
        folder=config.folder,
    )
    layout = layouts(llava, [selection.examples[0]], config)[0]
    text = config.sites.tokens in TEXT_TOKENS or not layout.images
    positions = layout.prompt_stop if text else layout.images[-1].stop
    in_blocks = sum(p.numel() for p in llava.blocks.parameters())
    in_tower = sum(p.numel() for p in llava.vision_blocks.parameters())
    patches = llava.grid[0] * llava.grid[1]
    flops = 2 * n_rows * (positions * in_blocks + patches * in_tower * len(layout.images))
    return Estimate(size, flops / matmul_speed(llava.device, llava.dtype), n, len(sites))


def _capture(
    llava: Llava,
    config: SweepConfig,
    selection: Selection,
    sites: Sequence[Site],
    processes: Processes,
    on_progress: OnProgress,
) -> ActivationStore:
    n = len(selection.examples)
    store = ActivationStore(config.folder.absolute() / STORES[0], n, shard_size(config.batch_size))
    own = -(-n // processes.world)
    fill_store(
        store, llava, selection.examples, sites, selection.groups, config, processes,
        lambda done: on_progress("capturing", done, own),
    )  # fmt: skip
    return store


def _map(
    llava: Llava,
    store: ActivationStore,
    sites: Sequence[Site],
    depths: Sequence[float],
    selection: Selection,
    maps: MapPlan,
    config: SweepConfig,
    on_progress: OnProgress,
) -> None:
    """The maps, unless there are none to make or they are there; a finished run is left as it is."""
    if not maps.examples or (config.folder / TABLE).is_file() or saved_results(config.folder) is not None:
        return
    steps = map_steps(sites, selection, maps)
    write_maps(llava, store, sites, depths, selection, maps, config, lambda n: on_progress("mapping patches", n, steps))


def _capture_control(
    llava: Llava,
    config: SweepConfig,
    selection: Selection,
    sites: Sequence[Site],
    processes: Processes,
    on_progress: OnProgress,
) -> ActivationStore | None:
    """The activations of the randomly initialised model; ``llava`` cannot be used after that."""
    if not _has_control_model(config):
        return None
    control_store = ActivationStore(
        config.folder.absolute() / STORES[1], selection.n_fitted, shard_size(config.batch_size)
    )
    fitted = selection.examples[: selection.n_fitted]
    own = -(-selection.n_fitted // processes.world)
    if control_store.missing(sites, selection.groups, rank=processes.rank, world=processes.world):
        random = _control_model(llava, config)
        fill_store(
            control_store, random, fitted, sites, selection.groups, config, processes,
            lambda done: on_progress("capturing the random model", done, own),
        )  # fmt: skip
    return control_store


def _control_model(llava: Llava, config: SweepConfig) -> Llava:
    """The same architecture and tokenizer with fresh random weights, in the place of the trained ones.

    The trained weights are let go first, so that the control does not double the memory.
    """
    device, dtype = llava.device, llava.dtype
    llava.model.to("meta")  # type: ignore[arg-type]
    gc.collect()
    seed = config.seed + _CONTROL_SEED
    with user_errors(ValueError):
        random = load(llava.config, device=device, dtype=dtype, attn=config.model.attn, seed=seed, validate=False)
    return replace(random, processor=llava.processor)


def _write_examples(config: SweepConfig, llava: Llava, selection: Selection) -> None:
    """``examples.parquet``: one row for each example, in the order of the shards; ``skipped.csv`` if any are."""
    rows = []
    for index, layout in enumerate(layouts(llava, selection.examples, config)):
        example = selection.examples[index]
        image = layout.images[0] if layout.images else None
        rows.append(
            {
                "id": example.id,
                "group": example.group,
                "split": example.split,
                "fitted": index < selection.n_fitted,
                "image_start": None if image is None else image.start,
                "image_stop": None if image is None else image.stop,
                "prompt_stop": layout.prompt_stop,
                **{f"label_{target.name}": example.labels[target.name] for target in selection.targets},
            }
        )
    table = pd.DataFrame(rows).astype({"image_start": "Int64", "image_stop": "Int64"})
    write_atomically(config.folder / "examples.parquet", table.to_parquet(index=False))
    if selection.skipped:
        skipped = pd.DataFrame([{"id": item.id, "reason": item.reason} for item in selection.skipped])
        write_atomically(config.folder / "skipped.csv", skipped.to_csv(index=False).encode())
