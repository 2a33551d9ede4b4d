"""A sweep over stored activations: new targets, probes, folds and controls without a forward pass."""

import hashlib
from collections.abc import Callable, Sequence

import torch

from figures import drawn_figures
from probes.config import RUN, SweepConfig
from probes.estimate import sweep_stages
from probes.evaluation.parallel import processes_for
from probes.fit_sites import fit_sites
from probes.linear.saving import save_probes
from probes.probe_data import fold_plans
from probes.stored import StoredCondition, stored_data
from records.manifest import commit
from records.processes import Processes, matmul_speed, own_device
from records.progress import OnProgress
from records.run import Run, writing
from records.timings import TimeEstimate


def sweep_stored(
    config: SweepConfig,
    *,
    command: Sequence[str] = (),
    on_progress: OnProgress,
    on_note: Callable[[str], None] = lambda line: None,
    figures: bool = True,
) -> TimeEstimate | None:
    """Fit probes on the activations that ``config.activations`` holds and write the run.

    The control of random weights is read from the same capture; without one it is left out, and ``on_note`` says so.
    ``figures`` are drawn unless it is False.

    Returns:
        The estimate for a dry run, after which nothing is written; None when the run is finished.

    Raises:
        UserError: If the activations, labels or settings do not fit together.
    """
    found = stored_data(config)
    config, data, stored = found.config, found.data, found.activations
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    plans = fold_plans(data, config)
    condition = config.condition or "image"
    random = stored.random_init if config.probing.controls else None
    has_random = random is not None and condition in random.conditions
    size = f"{len(data.examples)} examples at {len(found.sites)} stored sites, no forward pass"
    rows = StoredCondition(stored, condition, len(data.examples))
    widths = [rows.width(site, data.groups[0]) for site in found.sites]
    processes = [processes_for(plan, max(widths), len(widths), config.model.device) for plan in plans.values()]
    stages = sweep_stages(
        plans, widths, capture=0.0, control=0.0, maps=0.0,
        second=1 / matmul_speed(own_device(config.model.device), torch.float32), probe=config.probing.probe,
        processes=min(processes), has_control=has_random, load=0.0,
    )  # fmt: skip
    estimate = TimeEstimate(size, {name: seconds for name, seconds in stages.items() if seconds})
    if config.dry_run:
        return estimate
    notes = list(found.notes)
    if config.probing.controls and not has_random:
        notes.append(
            "control random_init left out: the capture has no randomly initialised model; "
            "capture-activations --random-init stores one"
        )
    for note in (str(estimate), *notes):
        on_note(note)
    about = {"name": data.name, "digest": data.digest, "n_examples": len(data.examples)}
    if config.labels is not None:
        about["labels"] = hashlib.sha256(config.labels.read_bytes()).hexdigest()[:16]
    with run.open(Processes(), on_note=on_note, model=dict(stored.manifest.get("model", {})), data=about):
        with writing(config.folder):
            table = stored.examples.drop(columns=[n for n in stored.examples.columns if n.startswith("label_")])
            for target in data.targets:
                table[f"label_{target.name}"] = [example.labels[target.name] for example in data.examples]
            commit(config.folder / "examples.parquet", table.to_parquet(index=False))
        if not run.is_finished:
            total = len(found.sites) * len(data.groups)
            with run.timings.stage("fitting probes"):
                fitted = fit_sites(
                    rows,
                    StoredCondition(random, condition, data.n_fitted) if random is not None and has_random else None,
                    found.sites, found.depths, data, plans, config,
                    lambda n: on_progress("fitting probes", n, total),
                )  # fmt: skip
            with writing(config.folder):
                save_probes(config.folder, fitted.probes)
            run.finish(fitted.table)
            if figures:
                with writing(config.folder), run.drawing():
                    drawn_figures(config.folder, again=True)
    return None
