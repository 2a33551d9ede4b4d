"""Run ``geometry-sweep``: measure every pair of layers, the map of layers, the tables and figures.

finished = run_geometry_sweep(GeometryConfig(Path("runs/smol-activations")))
finished.results, finished.figures[0]
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

import figures
from probes.geometry.compare import MeasurePlan
from probes.geometry.sweep.config import FINDINGS, RUN, GeometryConfig
from probes.geometry.sweep.estimate import GeometryEstimate, check_memory, estimate_run
from probes.geometry.sweep.kernels import Compact, Kernels
from probes.geometry.sweep.layer_jobs import (
    METRICS,
    Done,
    LayerJob,
    listed,
    measure_jobs,
    read_job,
    searched,
    write_job,
)
from probes.geometry.sweep.layer_map import LayerMap, compare_layers
from probes.geometry.sweep.report_table import render_summary
from probes.geometry.sweep.sides import (
    ChosenRows,
    Comparison,
    LayerPair,
    Rows,
    check_runs_apart,
    choose_rows,
    label_codes,
    open_comparisons,
)
from probes.geometry.sweep.table import Curves, find_places, tabulate, tabulate_maps
from records.manifest import commit
from records.processes import Processes, join_processes, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, read_timings, writing
from records.tables import read_results, read_table
from tasks.errors import UserError


def run_geometry_sweep(
    config: GeometryConfig,
    *,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | GeometryEstimate | None:
    """Measure the geometry of stored activations, or resume a run that was killed. No model runs.

    Args:
        config: The settings.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the estimate, and with the numbers of examples that are left out.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If the settings or the activations cannot be used.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from probes.activations.write import write_activations
        >>> folder = Path(tempfile.mkdtemp())
        >>> draw = np.random.default_rng(0).normal(size=(2, 90, 8)).astype(np.float32)
        >>> site = "blocks.0.hook_resid_post"
        >>> arrays = {c: {site: {"last": x}} for c, x in zip(("image", "caption"), draw, strict=True)}
        >>> import pandas as pd
        >>> made = write_activations(folder, arrays, pd.DataFrame({"id": [str(i) for i in range(90)]}))
        >>> print(run_geometry_sweep(GeometryConfig(folder, dry_run=True)).n_searches)
        2
    """
    on_progress = on_progress or ProgressBars()
    check_runs_apart(config)
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    device = own_device(config.device)
    if device == "mps":
        raise UserError("device must be cpu or cuda, got 'mps', which has no float64. Leave it out for cpu.")
    processes = join_processes(device)
    plan = MeasurePlan(
        (config.rank[0], config.rank[1]), config.k, config.mutual_k, config.largest, config.draws, config.shuffles,
        config.seed,
    )  # fmt: skip
    with run.timings.stage("reading activations"):
        comparisons = open_comparisons(config)
        chosen = [choose_rows(comparison, config, least=plan.least) for comparison in comparisons]
        for comparison, rows in zip(comparisons, chosen, strict=True):
            label_codes(comparison, config.target, rows.rows)
    estimate = estimate_run(config, plan, comparisons, chosen, device, processes.world)
    if config.dry_run:
        return estimate
    for note in (str(estimate), *_left_out(comparisons, chosen)):
        on_note(note)
    check_memory(estimate, device)
    with run.open(processes, on_note=on_note, **_about(comparisons)):
        if not run.is_finished:
            curves = [
                _measure(
                    run,
                    config,
                    plan,
                    number,
                    comparison,
                    rows,
                    processes,
                    device,
                    estimate.at_once,
                    on_progress,
                    on_note,
                )
                for number, (comparison, rows) in enumerate(zip(comparisons, chosen, strict=True))
            ]
            if processes.is_main:
                with run.timings.stage("tables"):
                    maps, findings = tabulate_maps(curves, plan), find_places(curves, plan)
                    table = tabulate(curves, plan)
                with writing(config.folder):
                    commit(config.folder / FINDINGS, findings.to_csv(index=False).encode())
                    if not maps.empty:
                        commit(config.folder / "map.csv", maps.to_csv(index=False).encode())
                        commit(config.folder / "map.parquet", maps.to_parquet(index=False))
                run.finish(table)
                with writing(config.folder), run.drawing():
                    figures.drawn_figures(config.folder, again=True)
        processes.wait()
    if not processes.is_main:
        return None
    return finished_geometry_sweep(config.folder, notes=tuple(_left_out(comparisons, chosen)))


def finished_geometry_sweep(folder: Path, notes: tuple[str, ...] = ()) -> FinishedRun:
    """The finished run in ``folder``, with its figures drawn; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    findings = read_table(folder / FINDINGS)
    with writing(folder):
        drawn = figures.drawn_figures(folder)
    return FinishedRun(folder, results, render_summary(findings), drawn, notes, timings=read_timings(folder, RUN))


def _left_out(comparisons: Sequence[Comparison], chosen: Sequence[ChosenRows]) -> list[str]:
    """A sentence for each comparison that leaves out examples."""
    notes = []
    for comparison, rows in zip(comparisons, chosen, strict=True):
        reasons = (
            (rows.n_grouped, "share a group with another"), (rows.n_limited, "exceed the limit"),
            (rows.n_duplicates, "have the activation of another at some layer"),
        )  # fmt: skip
        parts = [f"{n} {reason}" for n, reason in reasons if n]
        if parts:
            notes.append(f"{comparison.name}: {len(rows.rows)} examples are compared; {', '.join(parts)}")
    return notes


def _about(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The manifest's entries for models and data."""
    sides = [side for one in comparisons for side in (one.a, one.b, *(one.random or ()))]
    names = list(dict.fromkeys(side.stored.model_id for side in sides))
    first = comparisons[0].a.stored
    data = first.manifest.get("data", {})
    about = {"name": data.get("name"), "digest": data.get("digest"), "n_examples": len(first)}
    runs = {str(side.stored.folder): side.stored.digest for side in sides}
    return {
        "model": {"id": ", ".join(names)},
        "data": about | {"activations": runs, "comparisons": [one.name for one in comparisons]},
    }


def _measure(
    run: Run,
    config: GeometryConfig,
    plan: MeasurePlan,
    number: int,
    comparison: Comparison,
    chosen: ChosenRows,
    processes: Processes,
    device: str,
    at_once: int,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> Curves:
    """Measure what no file holds yet, then read all files and compare all layers; the last on rank 0 alone."""
    labels = label_codes(comparison, config.target, chosen.rows)
    rows, folder = chosen.rows, config.folder / "layers"
    kernels = None
    if config.layer_map and processes.is_main:
        kernels = Kernels(len(rows), len(comparison.a.sites) + len(comparison.b.sites), device)
    jobs: dict[str, list[LayerJob]] = {}
    for name, sides in (("", (comparison.a, comparison.b)), ("random-", comparison.random)):
        if sides is not None:
            jobs[name] = [
                LayerJob(*sides, pair, folder / f"{name}{number}-{pair.a}-{pair.b}.safetensors")
                for pair in comparison.pairs
            ]
    every = [job for own in jobs.values() for job in own]
    owned = every[processes.rank :: processes.world]
    missing = [job for job in owned if read_job(job.path, len(rows), plan) is None]
    for path in (job.path for job in missing):
        if path.is_file():
            shown = path.relative_to(config.folder)
            on_note(f"{shown} is damaged or from an earlier version: its layers are measured again")
    on_progress(f"measuring {comparison.name}", len(owned) - len(missing), len(owned))
    mapped = {job.path for job in jobs[""]} if processes.world == 1 else set()
    measured_jobs = measure_jobs(missing, rows, plan, labels, device, at_once)
    with closing(measured_jobs), run.timings.stage("measuring"):
        for measured in measured_jobs:
            write_job(measured, kernels if measured.job.path in mapped else None)
            del measured  # its kernels are large, and the next ones are being made
            on_progress(f"measuring {comparison.name}", 1, len(owned))
    processes.wait()
    if not processes.is_main:
        return Curves(comparison, chosen, {}, {}, None)
    found = {job.pair: one for job in jobs[""] if (one := read_job(job.path, len(rows), plan)) is not None}
    layer_map = None
    if kernels is not None:
        with run.timings.stage("mapping layers"):
            layer_map = _map(comparison, rows, plan, device, found, kernels, on_progress)
    values = {pair: one.measured for pair, one in found.items()}
    of_random = ((job.pair, read_job(job.path, len(rows), plan)) for job in jobs.get("random-", ()))
    random = {pair: one.measured for pair, one in of_random if one is not None}
    return Curves(comparison, chosen, values, random, layer_map)


def _map(
    comparison: Comparison,
    rows: Rows,
    plan: MeasurePlan,
    device: str,
    found: Mapping[LayerPair, Done],
    kernels: Kernels,
    on_progress: OnProgress,
) -> LayerMap:
    """The map of layers from the neighbour lists of the files; what they and ``kernels`` lack is searched."""
    lists: dict[str, dict[int, Tensor]] = {f"{side} {metric}": {} for side in "ab" for metric in METRICS}
    for pair, one in found.items():
        for name, own in lists.items():
            own[pair.a if name.startswith("a") else pair.b] = one.lists[name]
    for layer in comparison.b.sites:
        if layer not in lists["b near"]:  # the other model is deeper: no curve holds this layer
            one_layer = searched(comparison.b, layer, rows, plan, device)
            kernels.put(f"b {layer}", one_layer.kernel)
            for metric in METRICS:
                lists[f"b {metric}"][layer] = listed(one_layer, plan, metric)

    def kernel(side: str, layer: int) -> Compact:
        key = f"{side} {layer}"
        if key not in kernels:
            one = comparison.a if side == "a" else comparison.b
            kernels.put(key, searched(one, layer, rows, plan, device).kernel)
        return kernels[key]

    total = len(lists["a near"]) + plan.draws + plan.shuffles
    return compare_layers(
        (lists["a near"], lists["b near"]), (lists["a aligned"], lists["b aligned"]), kernel, plan,
        lambda: on_progress(f"map {comparison.name}", 1, total),
    )  # fmt: skip
