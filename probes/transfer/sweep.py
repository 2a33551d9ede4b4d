"""Run ``transfer-sweep``: both directions, layer by layer, with table and figure.

finished = run_transfer(TransferConfig(activations=Path("runs/activations-smol-scenes")))
finished.results, finished.figures[0]
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.table import Table
from torch import Tensor

from figures import drawn_figures
from figures.findings.peaks import NONE, SIGNIFICANT, location_range
from models.sites import Site
from probes.activations.open import ActivationSet
from probes.config import ProbeOptions, SiteOptions, SweepConfig
from probes.evaluation.folds import FoldPlan
from probes.evaluation.parallel import each_site, processes_for
from probes.evaluation.scores import Score, Spread
from probes.evaluation.selection import choose_best, hurdles_of
from probes.probe_data import fold_plans
from probes.stored import Stored, stored_data
from probes.transfer.config import TRANSFER, TransferConfig
from probes.transfer.cross import TransferScore, transfer
from probes.transfer.estimate import transfer_stages
from probes.transfer.parts import Part, part_path, read_part, write_part
from records.manifest import commit
from records.options import ModelOptions
from records.processes import Processes, launched, matmul_speed, own_device
from records.progress import OnProgress, ProgressBars
from records.resampling import adjust_max, adjust_p
from records.run import FinishedRun, Run, read_timings, writing
from records.tables import read_results
from records.timings import TimeEstimate
from tasks.checksums import is_whole
from tasks.errors import UserError

COLUMNS = (
    "model", "direction", "target", "probe", "standardise", "source", "source_tokens", "source_site", "source_layer",
    "source_depth", "read", "read_tokens", "read_site", "read_layer", "read_depth", "metric", "score", "lower", "upper",
    "interval", "chance", "shuffled", "within", "random_init", "n", "p", "q", "p_max",
    "best_share", "best_score", "best_lower", "best_upper",
)  # fmt: skip
DIRECTIONS = (("caption", "image"), ("image", "caption"))  # fitted on, read on


def run_transfer(
    config: TransferConfig,
    *,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | TimeEstimate:
    """Read probes of captions on pictures and the reverse, at every pair of layers; a run that was killed goes on.

    Args:
        config: The settings.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows progress bars in a terminal.
        on_note: Called with the size of the run, and with what is left out.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set.

    Raises:
        UserError: If the activations, labels or settings do not fit together.

    Example:
        >>> import tempfile
        >>> from probes.activations.write import write_activations
        >>> x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
        >>> sides = {side: {"blocks.0.hook_resid_post": {side: x}} for side in ("image", "caption")}
        >>> table = pd.DataFrame({"id": range(40), "label_kind": ["cat", "dog"] * 20})
        >>> store = write_activations(Path(tempfile.mkdtemp()), sides, table)
        >>> print(run_transfer(TransferConfig(store.folder, targets=("kind",), dry_run=True)))  # doctest: +ELLIPSIS
        40 examples, 1 x 1 layers, 2 cells, no forward pass, about ...
    """
    on_progress = on_progress or ProgressBars()
    if launched() > 1:
        raise UserError(f"activations must be read by one process, got {launched()}. Start it without a launcher.")
    found = _stored(config)
    run = Run(config.folder, TRANSFER, config.settings, command=command, overwrite=config.overwrite)
    data, stored = found.data, found.activations
    plans = fold_plans(data, found.config)
    n_cells = 2 * len(found.sites) ** 2 * len(data.targets)
    size = f"{data.n_fitted} examples, {len(found.sites)} x {len(found.sites)} layers, {n_cells} cells, no forward pass"
    random = stored.random_init
    if random is not None and len(random.conditions) < 2:
        random = None
    width = next(stored.shards(found.sites[0], next(iter(plans)))).shape[1]
    stages = transfer_stages(
        plans, width, len(found.sites), second=1 / matmul_speed(config.device, torch.float32), probe=config.probe,
        device=config.device, has_random=random is not None,
    )  # fmt: skip
    estimate = TimeEstimate(size, stages)
    if config.dry_run:
        return estimate
    on_note(str(estimate))
    if random is None:
        on_note("control random_init left out: the capture has none; capture-activations --random-init stores one")
    about = {
        "name": data.name, "digest": data.digest, "n_examples": data.n_fitted, "activations": stored.digest,
    }  # fmt: skip
    if config.labels is not None:
        about["labels"] = hashlib.sha256(config.labels.read_bytes()).hexdigest()[:16]
    with run.open(Processes(), on_note=on_note, model=dict(stored.manifest.get("model", {})), data=about):
        with writing(config.folder):
            commit(config.folder / "examples.parquet", stored.examples.to_parquet(index=False))
        if not run.is_finished:
            with run.timings.stage("fitting probes"):
                table = _matrix(config, found, plans, random, on_progress, on_note)
            run.finish(table)
            with writing(config.folder), run.drawing():
                drawn_figures(config.folder, again=True)
    return finished_transfer(config.folder)


def finished_transfer(folder: Path) -> FinishedRun:
    """The finished run in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, TRANSFER)
    with writing(folder):
        drawn = drawn_figures(folder)
    return FinishedRun(folder, results, render_summary(results), drawn, timings=read_timings(folder, TRANSFER))


def _stored(config: TransferConfig) -> Stored:
    """The picture side of the data, after a check that the caption side has the same layers."""
    layered = SiteOptions((config.site,) if config.layers is not None else (), config.layers, config.image_tokens)
    probing = ProbeOptions(config.targets, config.probe, config.folds, controls=False, maps=0)
    sweep = SweepConfig(
        ModelOptions(device=own_device(config.device)), sites=layered, probing=probing, seed=config.seed,
        activations=config.run, labels=config.labels,
    )  # fmt: skip
    found = stored_data(sweep, default_targets=("count",) if config.labels is None else ())
    stored = found.activations
    if "caption" not in stored.conditions:
        raise UserError(
            f"activations must have both conditions, got image alone in {str(stored.folder)!r}. "
            "Capture with --condition both."
        )
    if config.caption_tokens not in stored.tokens_of["caption"]:
        raise UserError(
            f"caption-tokens must be stored in {str(stored.folder)!r}, got {config.caption_tokens!r}. "
            f"It has: {', '.join(stored.tokens_of['caption'])}."
        )
    root = stored.folder / stored.folders["caption"]
    kept = [
        (site, at)
        for site, at in zip(found.sites, found.depths, strict=True)
        if site.part == "language_model" and site.name == config.site and (root / str(site)).is_dir()
    ]
    if not kept:
        raise UserError(
            f"site must be stored for pictures and captions, got none of {config.site!r} in {str(stored.folder)!r}. "
            f"It has: {', '.join(stored.sites)}."
        )
    return found._replace(sites=[site for site, _ in kept], depths=[at for _, at in kept])


def _matrix(
    config: TransferConfig,
    found: Stored,
    plans: Mapping[str, FoldPlan],
    random: ActivationSet | None,
    on_progress: OnProgress,
    on_note: Callable[[str], None],
) -> pd.DataFrame:
    """The table of all cells; those of source layers that a file holds are not fitted again."""
    depths = dict(zip(found.sites, found.depths, strict=True))
    parts: list[pd.DataFrame] = []
    total = 2 * len(found.sites) * len(plans)
    for source, read in DIRECTIONS:
        for group, plan in plans.items():
            tokens = {"image": group, "caption": config.caption_tokens}
            bare = replace(plan.fitted_only(), permutations=plan.permutations)  # both are over the fitted examples
            work = partial(
                _row, source=source, read=read, tokens=tokens, stored=found.activations, random=random, plan=bare,
                sites=found.sites, config=config,
            )  # fmt: skip
            widest = next(found.activations.shards(found.sites[0], group)).shape[1] * (1 + len(found.sites))
            processes = processes_for(bare, widest, len(found.sites), config.device)
            paths = {site: part_path(config.folder, source, group, str(site)) for site in found.sites}
            keys = [{"target": target, "read_site": str(at)} for target in bare.targets for at in found.sites]
            done = [site for site, path in paths.items() if read_part(path, keys) is not None]
            for path in (
                path for site, path in paths.items() if site not in done and path.is_file() and not is_whole(path)
            ):
                on_note(f"{path.relative_to(config.folder)} is damaged: its layers are read again")
            if done:
                on_progress("reading probes across", len(done), total)
            missing = [site for site in found.sites if site not in done]
            for site, (cells, controls) in zip(missing, each_site(work, missing, processes=processes), strict=True):
                part: list[dict[str, Any]] = []
                null: list[Any] = []
                spreads: list[Spread] = []
                for target, (own, *read_cells) in cells.items():
                    for number, (at, cell) in enumerate(zip(found.sites, read_cells, strict=True)):
                        part.append(
                            {
                                "model": found.config.model.name, "direction": f"{source} to {read}", "target": target,
                                "probe": config.probe if cell.metric != "r2" else "ridge",
                                "standardise": config.standardise, "source": source, "source_tokens": tokens[source],
                                "source_site": str(site), "source_layer": site.layer, "source_depth": depths[site],
                                "read": read, "read_tokens": tokens[read], "read_site": str(at),
                                "read_layer": at.layer, "read_depth": depths[at], "metric": cell.metric,
                                "score": cell.score.value, "lower": cell.score.lower, "upper": cell.score.upper,
                                "interval": cell.score.interval, "chance": cell.chance, "shuffled": cell.shuffled,
                                "within": own.score.value, "n": cell.score.n, "p": cell.permuted.p_value,
                                "random_init": controls[target][number] if controls else np.nan,
                                "observed": cell.permuted.observed,
                            }
                        )  # fmt: skip
                        null.append(cell.permuted.null)
                        spreads.append(cell.score.spread)
                with writing(config.folder):
                    write_part(paths[site], Part(pd.DataFrame(part), np.stack(null), spreads))
                on_progress("reading probes across", 1, total)
            parts.append(_corrected([_read(path, keys) for path in paths.values()], seed=config.seed))
    table = pd.concat(parts, ignore_index=True)[list(COLUMNS)]
    return table.astype({"source_layer": "Int64", "read_layer": "Int64"})


def _read(path: Path, keys: list[dict[str, Any]]) -> Part:
    """The cells in a file that this run has written."""
    found = read_part(path, keys)
    if found is None:
        raise UserError(
            f"out must hold what was written, got changed bytes in {str(path)!r}. Start the same command again."
        )
    return found


def _corrected(parts: Sequence[Part], *, seed: int) -> pd.DataFrame:
    """The cells of all source layers of a direction, with what the choice among all pairs of a target allows to say."""
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    null = np.concatenate([part.null for part in parts])
    spreads = [spread for part in parts for spread in part.spreads]
    rows = rows.assign(best_share=np.nan, best_score=np.nan, best_lower=np.nan, best_upper=np.nan)
    for target in dict.fromkeys(rows["target"]):
        own = (rows["target"] == target).to_numpy()
        observed = rows.loc[own, "observed"].to_numpy(dtype=float)
        p_max = adjust_max(observed, null[own])
        rows.loc[own, "p_max"], rows.loc[own, "q"] = p_max, adjust_p(rows.loc[own, "p"].to_numpy(dtype=float))
        scores = [
            Score(row["metric"], row["score"], row["lower"], row["upper"], row["n"], row["interval"], spread)
            for row, spread, mine in zip(rows.to_dict("records"), spreads, own, strict=True) if mine
        ]  # fmt: skip
        hurdles = hurdles_of(p_max, observed, null[own], rows.loc[own, "chance"].to_list())
        best = choose_best(scores, hurdles, seed=seed)
        if best is not None:
            rows.loc[own, "best_share"] = best.shares
            at = rows.index[own][best.place]
            rows.loc[at, ["best_score", "best_lower", "best_upper"]] = best.score, best.lower, best.upper
    return rows


def _row(
    site: Site,
    *,
    source: str,
    read: str,
    tokens: Mapping[str, str],
    stored: ActivationSet,
    random: ActivationSet | None,
    plan: FoldPlan,
    sites: Sequence[Site],
    config: TransferConfig,
) -> tuple[Mapping[str, tuple[TransferScore, ...]], dict[str, list[float]]]:
    """The probes of one layer read at all layers: scores by target, and those of the randomly initialised model."""

    def scores(from_set: ActivationSet, plan: FoldPlan) -> Mapping[str, tuple[TransferScore, ...]]:
        def rows(at: Site, condition: str) -> Tensor:
            x = from_set.tensor(at, tokens[condition], condition)[: len(plan.groups)]
            return x.to(device=config.device, dtype=torch.float32)

        return transfer(
            rows(site, source), [rows(at, read) for at in sites], plan, probe=config.probe,
            standardise=config.standardise,
        )  # fmt: skip

    if random is None:
        return scores(stored, plan), {}
    bare = replace(plan, permutations=plan.permutations[:0])  # only scores are kept
    controls = {target: [cell.score.value for cell in cells[1:]] for target, cells in scores(random, bare).items()}
    return scores(stored, plan), controls


def render_summary(results: pd.DataFrame) -> Table:
    """The best pair of layers of each target and direction; "none" where that pair is not significant."""
    table = Table(
        "target", "direction", "fitted at", "read at", "score", "95 %", "chance", "shuffled", "own side", "p_max",
        title="Probes read across captions and pictures",
        caption="the pair with the best score, in brackets the 95 % range of its place; score, 95 %: of such probes at "
        "that pair on new groups, corrected for the choice among all pairs; none: it is not significant at 5 %, "
        "corrected for the choice (p_max); own side: the same probe on its own side; shuffled: activations exchanged "
        "between examples; -: none, or not in a table of an earlier version",
    )  # fmt: skip
    chosen = ("best_share", "best_score", "best_lower", "best_upper")
    results = results.assign(**{name: np.nan for name in chosen if name not in results})
    for (target, direction), rows in results.groupby(["target", "direction"], sort=False):
        best = rows.iloc[int(rows["score"].to_numpy().argmax())]
        found = (NONE, *["-"] * 3, f"{best['chance']:.2f}", "-", "-")
        if best["p_max"] < SIGNIFICANT:
            ends = "-" if pd.isna(best["best_lower"]) else f"{best['best_lower']:.2f}-{best['best_upper']:.2f}"
            found = (
                _place(rows, best, "source_layer"), _place(rows, best, "read_layer"), _number(best["best_score"]), ends,
                f"{best['chance']:.2f}", f"{best['shuffled']:.2f}", f"{best['within']:.2f}",
            )  # fmt: skip
        table.add_row(str(target), str(direction), *found, f"{best['p_max']:.3f}")
    return table


def _place(rows: pd.DataFrame, best: "pd.Series[Any]", column: str) -> str:
    """The layer of the best pair on one side, with the 95 % range of its place if that is more than one."""
    shares = rows.groupby(column)["best_share"].sum(min_count=1).sort_index()
    if shares.isna().any():
        return str(best[column])
    first, last = (str(shares.index[at]) for at in location_range(shares.to_numpy(dtype=float)))
    return str(best[column]) if first == last else f"{best[column]} ({first}-{last})"


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"
