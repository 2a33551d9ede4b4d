"""Run ``capture-activations``: the activations of every example, their table, and what is stored.

finished = run_capture(CaptureConfig(condition="both"))
open_activations(finished.folder).numpy("blocks.12.hook_resid_post", "image")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from models.inputs import Layout
from models.llava import Llava
from models.sites import Site, depth
from probes.activations.choose_sites import choose_sites
from probes.activations.config import CAPTURE, CaptureConfig, Condition
from probes.activations.control_model import control_model, has_control
from probes.activations.examples import SCENES, Examples, Readable, load_examples, readable
from probes.activations.examples_table import examples_table
from probes.activations.fill import fill_store, layouts, shard_size, stored_dtype, width
from probes.activations.open import EXAMPLES, ActivationSet, open_activations
from probes.activations.store import FOLDERS, RANDOM, ActivationStore, SizeEstimate, groups_at, size_of
from probes.estimate import CAPTURE as CAPTURE_OVERHEAD
from probes.estimate import forward_flops
from records.manifest import commit
from records.open_model import describe_model, load_seconds, open_model
from records.processes import join_processes, matmul_speed, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, check_space, read_timings, writing
from records.tables import read_results, skipped_note
from records.timings import describe_estimate
from tasks.captions import captioned_examples
from tasks.errors import UserError
from tasks.example import Example

COLUMNS = (
    "model", "condition", "weights", "part", "site", "layer", "name", "depth", "tokens", "pool", "dtype", "n_examples",
    "n_rows", "d", "bytes", "norm",
)  # fmt: skip

CAPTURING, OF_RANDOM, CHECKING = "capturing", "capturing the random model", "checking"  # stages
VALUE_SECONDS = 1e-8  # of checking a stored value, measured on smol and one CPU thread, 2026-11-30


@dataclass(frozen=True)
class CaptureEstimate:
    """Cost of a capture."""

    size: SizeEstimate
    """Bytes written, and bytes free."""
    stages: Mapping[str, float]
    """Seconds by stage, named as in the manifest's ``timings``."""
    n_examples: int
    n_sites: int
    n_groups: int
    """Number of token groups, those of both conditions counted."""

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole capture."""
        return sum(self.stages.values())

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.n_examples} examples at {self.n_sites} sites, {self.n_groups} token groups: "
            f"{self.size.activations / 1e6:.1f} MB of activations ({self.size.free / 1e9:.1f} GB free), "
            f"{describe_estimate(self.stages)}"
        )


@dataclass(frozen=True)
class _Work:
    """What is captured under one condition."""

    examples: Sequence[Example]
    sites: list[Site]
    groups: tuple[str, ...]
    layouts: list[Layout]


def run_capture(
    config: CaptureConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | CaptureEstimate | None:
    """Store the activations of every example, or resume a capture that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows progress bars in a terminal.
        on_note: Called with the estimate, before the capture starts.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If the settings, the data or the model are invalid, a caption is missing, or the disk is too small.

    Example:
        >>> from probes.config import DataOptions
        >>> from records.options import ModelOptions
        >>> config = CaptureConfig(ModelOptions("random:tiny"), DataOptions(limit=8, transfer="none"), dry_run=True)
        >>> print(run_capture(config))  # doctest: +ELLIPSIS
        8 examples at ... sites, 2 token groups: ... MB of activations (... GB free), about ...
    """
    on_progress = on_progress or ProgressBars()
    run = Run(config.folder, CAPTURE, config.settings, command=command, overwrite=config.overwrite)
    read = load_examples(config.data, seed=config.seed)
    data = readable(read, config.data, captioned="caption" in config.conditions)
    for condition in config.conditions:
        _check_examples(data.examples, condition, config)
    device = own_device(config.model.device)
    processes = join_processes(device)
    given = llava
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=given, weights=not config.dry_run)
    if config.data.spec == SCENES:
        read = load_examples(config.data, seed=config.seed, size=llava.image_size)
        data = data._replace(examples=read.both)
    work = {condition: _work(config, condition, data.examples, llava) for condition in config.conditions}
    random = config.random_init and has_control(config.model)
    estimate = _estimate(config, llava, work, data, device, random=random, world=processes.world)
    if config.dry_run:
        return estimate
    check_space(
        estimate.size.missing, config.folder, what="activations",
        advice="Use fewer sites, tokens or examples, --pool mean, or --store-dtype float16.",
    )  # fmt: skip
    on_note(str(estimate))
    with run.open(processes, on_note=on_note, model=describe_model(llava), data=_about_data(read, data, llava)):
        if processes.is_main:
            _write_tables(config, data, work)

        def captured(model: Callable[[], Llava], folders: Mapping[str, str], n: int, of_what: str) -> None:
            size, total = shard_size(config.batch_size, config.sites.pool), -(-n // processes.world)
            for condition, part in work.items():
                root = config.folder.absolute() / folders[condition]
                store = ActivationStore(root, n, size, ragged=config.sites.pool == "none")
                done = partial(_tell, on_progress, f"capturing {condition}{of_what}", total)
                fill_store(store, model, part.examples[:n], part.sites, part.groups, config, processes, done, on_note)

        with run.timings.stage(CAPTURING):
            captured(lambda: llava, FOLDERS, len(data.examples), "")
        processes.wait()
        if random:
            control = partial(control_model, llava, config.model, seed=config.seed, keep=given is not None)
            with run.timings.stage(OF_RANDOM):
                captured(_once(control), RANDOM, data.n_fitted, " of the random model")
        processes.wait()
        if not processes.is_main:
            return None
        if not run.is_finished:
            depths = {str(site): depth(site, llava) for part in work.values() for site in part.sites}
            with run.timings.stage(CHECKING):
                table = _stored_table(config, depths, on_progress)
            run.finish(table)
    return finished_capture(config.folder)


def finished_capture(folder: Path) -> FinishedRun:
    """The finished capture in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, CAPTURE)
    return FinishedRun(
        folder, results, _summary(results), (), skipped_note(folder), timings=read_timings(folder, CAPTURE)
    )


def _tell(on_progress: OnProgress, stage: str, total: int, done: int) -> None:
    on_progress(stage, done, total)


def _once(make: Callable[[], Llava]) -> Callable[[], Llava]:
    """``make``, called at the first use only."""
    made: list[Llava] = []

    def get() -> Llava:
        if not made:
            made.append(make())
        return made[0]

    return get


def _check_examples(examples: Sequence[Example], condition: Condition, config: CaptureConfig) -> None:
    """Check that every example has what the condition and its token groups need."""
    if condition == "caption":
        captioned_examples(examples)
        return
    boxed = "object" in config.tokens_of[condition] or config.sites.pool == "box"
    for index in range(len(examples)):
        example = examples[index]
        if not example.pictures:
            raise UserError(
                f"example must have a picture in the condition 'image', got none in {example.id!r}. "
                "Drop the row, or use --condition caption."
            )
        if boxed and (example.focus is None or example.focus not in example.boxes):
            raise UserError(
                f"tokens 'object' and pool 'box' must have a focus box in every example, got none in {example.id!r}. "
                "Use --tokens image."
            )


def _work(config: CaptureConfig, condition: Condition, examples: Sequence[Example], llava: Llava) -> _Work:
    groups = config.tokens_of[condition]
    if condition == "caption":
        examples = captioned_examples(examples)
    specs = config.sites.specs
    if condition == "caption" and "image" in config.conditions and specs:  # the vision side has no caption tokens
        everywhere = choose_sites(specs, config.sites.layers, llava, groups=("image",), shown="image")
        specs = tuple(str(site) for site in everywhere if site.part == "language_model")
        if not specs:
            raise UserError(
                f"site must be in the language model for the condition 'caption', got {', '.join(config.sites.specs)}. "
                "Use --condition image, or add resid_post."
            )
        sites = choose_sites(specs, None, llava, groups=groups, shown=", ".join(groups))
    else:
        sites = choose_sites(specs, config.sites.layers, llava, groups=groups, shown=", ".join(groups))
    return _Work(examples, sites, groups, layouts(llava, examples, config))


def _n_rows(layout: Layout, group: str, pool: str) -> int:
    """Stored rows of one example; for a box the number of its picture's patches, which is at least that."""
    if pool != "none" or group == "last":
        return 1
    image = sum(span.stop - span.start for span in layout.images)
    real = layout.real.stop - layout.real.start
    spans = {"question": layout.question, "caption": layout.context}
    if group in spans:
        span = spans[group]
        return 0 if span is None else span.stop - span.start
    return {"image": image, "object": image, "text": real - image, "all": real}[group]


def _estimate(
    config: CaptureConfig,
    llava: Llava,
    work: Mapping[Condition, _Work],
    data: Readable,
    device: str,
    *,
    random: bool,
    world: int,
) -> CaptureEstimate:
    """Bytes and seconds of all captures, that of the control model included."""
    values, seconds = 0, {CAPTURING: 0.0, OF_RANDOM: 0.0}
    second = CAPTURE_OVERHEAD / matmul_speed(device, llava.dtype) / world  # of one operation
    for part in work.values():
        shown = part.layouts + (part.layouts[: data.n_fitted] if random else [])
        rows = {group: sum(_n_rows(layout, group, config.sites.pool) for layout in shown) for group in part.groups}
        values += sum(width(site, llava) * rows[group] for site in part.sites for group in groups_at(site, part.groups))
        whole = bool(set(part.groups) - {"image", "object"})
        for number, layout in enumerate(shown):
            positions = layout.prompt_stop if whole or not layout.images else layout.images[-1].stop
            flops = forward_flops(llava, part.sites, positions=positions, n_pictures=len(layout.images))
            seconds[CAPTURING if number < len(part.layouts) else OF_RANDOM] += flops * second
    size = size_of(values, dtype=stored_dtype(config, llava), folder=config.folder)
    n_sites = len({site for part in work.values() for site in part.sites})
    n_groups = sum(len(part.groups) for part in work.values())
    stages = {"load": load_seconds(llava), **seconds, CHECKING: VALUE_SECONDS * values}
    return CaptureEstimate(size, stages, len(data.examples), n_sites, n_groups)


def _about_data(read: Examples, data: Readable, llava: Llava) -> dict[str, Any]:
    """The entry ``data`` of the manifest, from which a later command makes its targets."""
    return {
        "name": read.name,
        "digest": read.digest,
        "n_examples": len(data.examples),
        "n_fitted": data.n_fitted,
        "image_size": llava.image_size,
        "n_layers": llava.n_layers,
        "n_vision_layers": llava.n_vision_layers,
        "targets": [[target.name, target.scope, target.kind] for target in read.fitted.targets],
    }


def _write_tables(config: CaptureConfig, data: Readable, work: Mapping[Condition, _Work]) -> None:
    table = examples_table(data, {condition: part.layouts for condition, part in work.items()})
    with writing(config.folder):
        commit(config.folder / EXAMPLES, table.to_parquet(index=False))
        if data.skipped:
            skipped = pd.DataFrame([{"id": item.id, "reason": item.reason} for item in data.skipped])
            commit(config.folder / "skipped.csv", skipped.to_csv(index=False).encode())


def _stored_table(config: CaptureConfig, depths: Mapping[str, float], on_progress: OnProgress) -> pd.DataFrame:
    """What is stored: one row for each condition, model, site and token group."""
    stored = open_activations(config.folder)
    sets: list[tuple[str, ActivationSet]] = [("model", stored)]
    if stored.random_init is not None:
        sets.append(("random_init", stored.random_init))
    rows = []
    for weights, found in sets:
        for condition in found.conditions:
            for name in found.sites:
                site = Site.parse(name)
                if not (found.folder / found.folders[condition] / name).is_dir():
                    continue
                for group in groups_at(site, found.tokens_of[condition]):
                    n, norms, d, n_bytes, dtype = 0, 0.0, 0, 0, ""
                    for shard in found.shards(name, group, condition):
                        n, d = n + len(shard), shard.shape[1]
                        norms += float(shard.double().norm(dim=1).sum())
                        n_bytes += shard.numel() * shard.element_size()
                        dtype = str(shard.dtype).removeprefix("torch.")
                    row = (
                        config.model.name, condition, weights, site.part, name, site.layer, site.name, depths[name],
                        group, found.pool, dtype, len(found), n, d, n_bytes, norms / n if n else np.nan,
                    )  # fmt: skip
                    rows.append(dict(zip(COLUMNS, row, strict=True)))
                on_progress(CHECKING, 1, len(found.sites) * sum(len(s.conditions) for _, s in sets))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "Int64"})


def _summary(results: pd.DataFrame) -> Table:
    """One line for each condition, model and token group."""
    table = Table("condition", "weights", "tokens", "sites", "examples", "rows", "MB", title="Stored activations")
    for (condition, weights, tokens), rows in results.groupby(["condition", "weights", "tokens"], sort=False):
        table.add_row(
            str(condition), str(weights), str(tokens), str(len(rows)), str(rows["n_examples"].iloc[0]),
            str(rows["n_rows"].iloc[0]), f"{rows['bytes'].sum() / 1e6:.1f}",
        )  # fmt: skip
    return table
