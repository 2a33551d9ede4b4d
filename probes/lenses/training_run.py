"""Run ``lens-sweep train``: make a tuned, Jacobian or latent lens, and compare it with the logit lens.

finished = run_lens_training(TrainConfig(kind="tuned", steps=100))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.inputs import Inputs, prepare
from models.llava import Llava
from probes.lenses.config import TRAIN, TrainConfig
from probes.lenses.data import digest_of, load_corpus, load_training
from probes.lenses.estimate import training_estimate
from probes.lenses.jacobian import JacobianLens, average, jacobian_sites, jacobians_of
from probes.lenses.latent import build_latent_lens
from probes.lenses.reading import LogitLens, Transport
from probes.lenses.report_table import render_training
from probes.lenses.table import place_of
from probes.lenses.tuned_training import TunedTrainer, kl_by_site
from records.intervals import mean_intervals
from records.manifest import commit, read_manifest
from records.open_model import describe_model, open_model
from records.processes import Processes, join_processes, launched, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, read_timings, writing
from records.tables import read_results
from records.timings import TimeEstimate
from tasks.checksums import is_whole
from tasks.dataset import Dataset
from tasks.errors import UserError

CHECKPOINT, JACOBIAN = "checkpoint.safetensors", "lens.pt"
_EVERY = 25  # steps between two checkpoints
INTERVAL = "95% over groups of examples, paired"
COLUMNS = (
    "model", "lens", "positions", "part", "site", "layer", "name", "depth", "kl_logit", "kl", "difference", "lower",
    "upper", "n", "interval",
)  # fmt: skip


def run_lens_training(
    config: TrainConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | TimeEstimate | None:
    """Make a lens, or resume a run that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the estimate.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set.

    Raises:
        UserError: If the settings, the data or the model cannot be used, or a launcher started several processes.

    Example:
        >>> from records.options import ModelOptions
        >>> print(run_lens_training(TrainConfig(ModelOptions("random:tiny"), steps=5, dry_run=True)))
        5 steps of 8 examples, about ...
    """
    on_progress = on_progress or ProgressBars()
    if launched() > 1:
        raise UserError(f"processes must be one for lens-sweep train, got {launched()}. Start it without a launcher.")
    run = Run(config.folder, TRAIN, config.settings, command=command, overwrite=config.overwrite)
    texts = load_corpus(config.text, config.data.spec, seed=config.seed) if config.kind == "latent" else []
    device = own_device(config.model.device)
    processes: Processes = join_processes(device)
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    fitted, held_out = (None, None) if texts else load_training(config.data, seed=config.seed, size=llava.image_size)
    if config.kind == "jacobian":
        jacobian_sites(llava.n_layers, config.layers)  # raises for layers that it cannot have
    estimate = training_estimate(config, llava, fitted, 0 if held_out is None else len(held_out), texts, device)
    if config.dry_run:
        return estimate
    on_note(str(estimate))
    about: dict[str, Any] = {"corpus": digest_of(texts)}
    if fitted is not None and held_out is not None:
        about = {"name": fitted.name, "digest": f"{fitted.digest}+{held_out.digest}", "n_examples": len(fitted)}
    with run.open(processes, on_note=on_note, model=describe_model(llava), data=about):
        if not run.is_finished:
            if texts:
                with run.timings.stage("indexing"):
                    results = _make_latent(config, llava, texts, on_progress)
                run.finish(results)
            else:
                assert fitted is not None
                assert held_out is not None
                stage, make = ("training", _make_tuned) if config.kind == "tuned" else ("Jacobians", _make_jacobian)
                with run.timings.stage(stage):
                    lens = make(config, llava, fitted, on_progress)
                with run.timings.stage("scoring"):
                    results = _evaluate(config, llava, lens, held_out, on_progress)
                run.finish(results)
                (config.folder / CHECKPOINT).unlink(missing_ok=True)
    return finished_lens_training(config.folder)


def finished_lens_training(folder: Path) -> FinishedRun:
    """The finished run in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, TRAIN)
    name = JACOBIAN if (folder / JACOBIAN).is_file() else ""
    notes = (f"lens: {folder / name}",)
    return FinishedRun(folder, results, render_training(results), (), notes, timings=read_timings(folder, TRAIN))


def is_training(folder: Path) -> bool:
    """True if a folder was written by ``lens-sweep train``."""
    try:
        return read_manifest(folder, TRAIN) is not None
    except UserError:
        return False


def _make_tuned(config: TrainConfig, llava: Llava, data: Dataset, on_progress: OnProgress) -> Transport:
    """Train, with a checkpoint after every 25 steps; the examples of a step depend on the seed and its number."""
    trainer = TunedTrainer(
        llava, positions=config.read_at, steps=config.steps, optimizer=config.optimizer, lr=config.lr
    )
    state = _read(config.folder / CHECKPOINT)
    if state is not None:
        trainer.restore(state)
    on_progress("training", trainer.done, config.steps)
    while trainer.done < config.steps:
        rng = np.random.default_rng([config.seed, trainer.done])
        chosen = rng.choice(len(data), size=min(config.batch_size, len(data)), replace=False)
        examples = [data.examples[int(index)] for index in chosen]
        trainer.step(prepare(llava, examples, preprocess=config.data.preprocess, answers=_answered(data)))
        on_progress("training", 1, config.steps)
        if trainer.done % _EVERY == 0:
            with writing(config.folder):
                commit(config.folder / CHECKPOINT, save(trainer.state()))
    lens = trainer.finished()
    with writing(config.folder):
        lens.save(config.folder)
    return lens


def _make_jacobian(config: TrainConfig, llava: Llava, data: Dataset, on_progress: OnProgress) -> Transport:
    """Average over the examples, with the sum so far written after each."""
    sites = jacobian_sites(llava.n_layers, config.layers)
    path = config.folder / CHECKPOINT
    state = _read(path) or {"done": torch.tensor(0), "used": torch.tensor(0)}
    total = {int(key): value for key, value in state.items() if key.isdecimal()}
    used = int(state["used"])
    on_progress("Jacobians", int(state["done"]), len(data))
    for number in range(int(state["done"]), len(data)):
        inputs = _one(config, llava, data, number)
        found = jacobians_of(llava, inputs, sites, sources=config.read_at)
        if found is not None:
            used += 1
            total = {layer: total[layer] + matrix if total else matrix for layer, matrix in found.items()}
        state = {"done": torch.tensor(number + 1), "used": torch.tensor(used)}
        with writing(config.folder):
            commit(path, save({**state, **{str(layer): matrix for layer, matrix in total.items()}}))
        on_progress("Jacobians", 1, len(data))
    if not used:
        raise UserError(f"prompts must have {config.read_at} positions to average over, got none. Use longer prompts.")
    lens = average(llava, total, used, sources=config.read_at)
    with writing(config.folder):
        lens.save(config.folder / JACOBIAN, dtype=torch.float32)
    return JacobianLens.load(config.folder / JACOBIAN)


def _make_latent(config: TrainConfig, llava: Llava, texts: Sequence[str], on_progress: OnProgress) -> pd.DataFrame:
    """Build and write the index; the table says how alike two of its tokens are, which is high in narrow spaces."""
    lens = build_latent_lens(
        llava, texts, layers=config.layers, most_tokens=config.text.corpus_tokens,
        on_text=lambda done, total: on_progress("indexing", done, total),
    )  # fmt: skip
    with writing(config.folder):
        lens.save(config.folder)
    rows = []
    for place, site in enumerate(lens.sites):
        unit = lens.vectors[place].float()
        n = len(unit)
        pairs = (float(unit.sum(0).square().sum()) - float(unit.square().sum())) / max(n * (n - 1), 1)
        rows.append(
            {
                "model": config.model.name, "lens": "latent", **place_of(str(site), llava.n_layers), "n_tokens": n,
                "n_words": len(set(lens.words)), "mean_cosine": pairs,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _evaluate(
    config: TrainConfig, llava: Llava, lens: Transport, held_out: Dataset, on_progress: OnProgress
) -> pd.DataFrame:
    """KL from the final distribution at text and at image positions of held-out examples, against the logit lens."""
    rows = []
    for number in range(len(held_out)):
        inputs = _one(config, llava, held_out, number)
        for positions in ("text", "image"):
            for site, name, value in kl_by_site(llava, [LogitLens(), lens], inputs, positions):
                rows.append((positions, str(site), name, held_out.examples[number].group, value))
        on_progress("scoring", 1, len(held_out))
    table = pd.DataFrame(rows, columns=["positions", "site", "lens", "group", "kl"])
    return compare_kl(table, model=config.model.name, lens=lens.name, n_layers=llava.n_layers)


def compare_kl(table: pd.DataFrame, *, model: str, lens: str, n_layers: int) -> pd.DataFrame:
    """One row for each kind of positions and site that the lens reads, with the paired change from the logit lens.

    ``table`` has the columns ``positions, site, lens, group, kl``, one row for each example and lens.
    """
    found = []
    for (positions, site), part in table.groupby(["positions", "site"], sort=False):
        wide = part.pivot_table(index="group", columns="lens", values="kl", aggfunc="mean")
        if lens not in wide:
            continue
        change = (wide[lens] - wide["logit"]).to_numpy(dtype=float)
        ends = mean_intervals(change[None])
        found.append(
            {
                "model": model, "lens": lens, "positions": positions, **place_of(str(site), n_layers),
                "kl_logit": float(wide["logit"].mean()), "kl": float(wide[lens].mean()),
                "difference": float(change.mean()), "lower": float(ends.lower[0]), "upper": float(ends.upper[0]),
                "n": len(change), "interval": INTERVAL,
            }
        )  # fmt: skip
    return pd.DataFrame(found, columns=list(COLUMNS))


def _one(config: TrainConfig, llava: Llava, data: Dataset, number: int) -> Inputs:
    return prepare(llava, [data.examples[number]], preprocess=config.data.preprocess, answers=_answered(data))


def _answered(data: Dataset) -> bool:
    """True if the answers are text to read too."""
    return bool(data.examples[0].answer)


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint; None if there is none as it was written."""
    try:
        return load_file(path) if is_whole(path) else None
    except (OSError, SafetensorError):
        return None
