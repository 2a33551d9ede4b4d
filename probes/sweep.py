"""The probe sweep: capture activations, fit and score probes at every site, write table and figure.

finished = run_sweep(SweepConfig(data=DataOptions(limit=200)))
finished.results, finished.figures[0]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from figures import drawn_figures
from models.llava import Llava
from models.sites import Site, depth
from probes.activations.choose_sites import choose_sites
from probes.activations.control_model import control_model, has_control
from probes.activations.fill import fill_store, layouts, shard_size, stored_dtype, width
from probes.activations.store import RANDOM, STORES, ActivationStore, SizeEstimate, estimate_size
from probes.config import RUN, TEXT_TOKENS, SweepConfig
from probes.estimate import forward_flops, sweep_stages
from probes.evaluation.folds import FoldPlan
from probes.evaluation.parallel import processes_for
from probes.fit_sites import fit_sites
from probes.linear.saving import save_probes
from probes.maps.files import has_maps
from probes.maps.map_plan import plan_maps
from probes.maps.write import write_maps
from probes.probe_data import ProbeData, at_size, fold_plans, select
from probes.report_table import render_summary
from probes.sweep_stored import sweep_stored
from records.manifest import commit
from records.open_model import describe_model, load_seconds, open_model
from records.processes import join_processes, launched, matmul_speed, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, check_space, read_timings, writing
from records.tables import read_results, skipped_note
from records.timings import TimeEstimate, describe_estimate
from tasks.errors import UserError
from tasks.example import Example

FIGURE = "score_by_layer"


@dataclass(frozen=True)
class Estimate:
    """Cost of a sweep."""

    size: SizeEstimate
    """Bytes written, and bytes free."""
    stages: Mapping[str, float]
    """Seconds by stage, named as in the manifest's ``timings``."""
    n_examples: int
    """Number of examples, including the transfer split."""
    n_sites: int

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole sweep, within a factor of two on the machine of the calibration."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.n_examples} examples at {self.n_sites} sites: {self.size.activations / 1e6:.1f} MB of activations "
            f"({self.size.free / 1e9:.1f} GB free), {describe_estimate(self.stages)}"
        )


def run_sweep(
    config: SweepConfig,
    *,
    llava: Llava | None = None,
    data: ProbeData | None = None,
    figures: bool = True,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | Estimate | TimeEstimate | None:
    """Run a sweep, or resume one that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        data: The examples, if they are in memory; otherwise ``config.data`` is read.
        figures: Draw the figures of the run.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows progress bars in a terminal.
        on_note: Called with the estimate and with notes on what is left out, before the sweep starts.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set (of time alone for stored activations); None on all
        processes but rank 0.

    Raises:
        UserError: If the settings, the data or the model are invalid.

    Example:
        >>> from probes.config import ProbeOptions
        >>> from records.options import ModelOptions
        >>> print(run_sweep(SweepConfig(ModelOptions("random:tiny"), dry_run=True)))  # doctest: +ELLIPSIS
        266 examples at ... sites: ... MB of activations (... GB free), about ...
    """
    on_progress = on_progress or ProgressBars()
    _check_settings(config)
    if config.activations is not None:
        if launched() > 1:
            raise UserError(f"activations must be read by one process, got {launched()}. Start it without a launcher.")
        estimated = sweep_stored(config, command=command, on_progress=on_progress, on_note=on_note, figures=figures)
        if estimated is not None:
            return estimated
        return finished_sweep(config.folder, figures=figures)
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    selection = data or select(config)
    plans = fold_plans(selection, config)
    maps = plan_maps(selection, config)

    device = own_device(config.model.device)
    processes = join_processes(device)
    given = llava
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    selection = data or at_size(selection, config, llava.image_size)
    sites = _sites(config, llava)
    depths = [depth(site, llava) for site in sites]

    estimate = _estimate(config, llava, selection, sites, device, plans, len(maps.examples))
    if config.dry_run:
        return estimate
    check_space(
        estimate.size.missing, config.folder, what="activations",
        advice="Use fewer sites or examples, or --store-dtype float16.",
    )  # fmt: skip
    for note in (str(estimate), *maps.notes):
        on_note(note)

    about_data = {"name": selection.name, "digest": selection.digest, "n_examples": len(selection.examples)}
    with run.open(processes, on_note=on_note, model=describe_model(llava), data=about_data):
        if processes.is_main:
            _write_examples(config, llava, selection)

        def captured(name: str, model: Callable[[], Llava], examples: Sequence[Example]) -> ActivationStore:
            store = ActivationStore(config.folder.absolute() / name, len(examples), shard_size(config.batch_size))
            stage = "capturing" if name == STORES[0] else "capturing the random model"
            own = -(-len(examples) // processes.world)
            with run.timings.stage(stage):
                fill_store(
                    store, model, examples, sites, selection.groups, config, processes,
                    lambda n: on_progress(stage, n, own), on_note,
                )  # fmt: skip
            return store

        store = captured(STORES[0], lambda: llava, selection.examples)
        processes.wait()
        if processes.is_main and maps.examples and not has_maps(config.folder):
            steps = len(sites) * len(selection.groups) + len(maps.examples)
            with run.timings.stage("mapping patches"):
                write_maps(
                    llava, store, sites, depths, selection, plans, maps, config,
                    lambda n: on_progress("mapping patches", n, steps),
                )  # fmt: skip
        control_store = None
        if _has_control_model(config):
            control = partial(control_model, llava, config.model, seed=config.seed, keep=given is not None)
            control_store = captured(RANDOM["image"], control, selection.examples[: selection.n_fitted])
        processes.wait()
        if not processes.is_main:
            return None
        if not run.is_finished:
            total = len(sites) * len(selection.groups)
            with run.timings.stage("fitting probes"):
                fitted = fit_sites(
                    store, control_store, sites, depths, selection, plans, config,
                    lambda n: on_progress("fitting probes", n, total),
                )  # fmt: skip
            with writing(config.folder):
                save_probes(config.folder, fitted.probes)
            run.finish(fitted.table)
            if figures:
                with writing(config.folder), run.drawing():
                    drawn_figures(config.folder, again=True)
    return finished_sweep(config.folder, figures=figures)


def finished_sweep(folder: Path, *, figures: bool = True) -> FinishedRun:
    """The finished run in ``folder``; raise ``UserError`` if there is none.

    Its figure is drawn if it is missing, unless ``figures`` is False.
    """
    results = read_results(folder, RUN)
    drawn: tuple[Path, ...] = ()
    if figures:
        with writing(folder):
            drawn = drawn_figures(folder)
    notes, timings = skipped_note(folder), read_timings(folder, RUN)
    return FinishedRun(folder, results, render_summary(results), drawn, notes, timings=timings)


def _check_settings(config: SweepConfig) -> None:
    """Check the ranges of the settings."""
    smallest = {
        "batch-size": (config.batch_size, 1),
        "maps": (0 if config.probing.maps is None else config.probing.maps, 0),
        "seed": (config.seed, 0),
        "folds": (config.probing.folds, 2),
    }
    for name, (value, lowest) in smallest.items():
        if value < lowest:
            raise UserError(f"{name} must be >= {lowest}, got {value}.")
    if config.sites.pool == "none" and config.sites.tokens != "last":
        raise UserError(
            f"pool must be mean, max or box for tokens {config.sites.tokens!r}, got 'none'. A probe takes one "
            "activation of an example; only --tokens last leaves one without pooling."
        )


def _sites(config: SweepConfig, llava: Llava) -> list[Site]:
    """The sites of the settings; by default all at which the tokens exist."""
    options = config.sites
    return choose_sites(options.specs, options.layers, llava, groups=(options.tokens,), shown=options.tokens)


def _has_control_model(config: SweepConfig) -> bool:
    """True if a randomly initialised model is run as a control; False if the model's own weights are random."""
    return config.probing.controls and has_control(config.model)


def _estimate(
    config: SweepConfig,
    llava: Llava,
    selection: ProbeData,
    sites: Sequence[Site],
    device: str,
    plans: Mapping[str, FoldPlan],
    n_maps: int,
) -> Estimate:
    """Bytes, and seconds of all stages, including the control model."""
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
    a_run = forward_flops(llava, sites, positions=positions, n_pictures=len(layout.images))
    widths = [width(site, llava) for site in sites]
    processes = [processes_for(plan, max(widths), len(sites), config.model.device) for plan in plans.values()]
    stages = sweep_stages(
        plans, widths, capture=n * a_run, control=(n_rows - n) * a_run, maps=n_maps * a_run,
        second=1 / matmul_speed(device, llava.dtype), probe=config.probing.probe, processes=min(processes, default=1),
        has_control=_has_control_model(config), load=load_seconds(llava),
    )  # fmt: skip
    return Estimate(size, stages, n, len(sites))


def _write_examples(config: SweepConfig, llava: Llava, selection: ProbeData) -> None:
    """Write ``examples.parquet``, one row for each example in the order of the shards, and ``skipped.csv``."""
    rows = []
    for index, layout in enumerate(layouts(llava, selection.examples, config)):
        example = selection.examples[index]
        image = layout.images[0] if layout.images else None
        rows.append(
            {
                "id": example.id, "group": example.group, "split": example.split, "fitted": index < selection.n_fitted,
                "image_start": None if image is None else image.start,
                "image_stop": None if image is None else image.stop, "prompt_stop": layout.prompt_stop,
                **{f"label_{target.name}": example.labels[target.name] for target in selection.targets},
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).astype({"image_start": "Int64", "image_stop": "Int64"})
    with writing(config.folder):
        commit(config.folder / "examples.parquet", table.to_parquet(index=False))
        if selection.skipped:
            skipped = pd.DataFrame([{"id": item.id, "reason": item.reason} for item in selection.skipped])
            commit(config.folder / "skipped.csv", skipped.to_csv(index=False).encode())
