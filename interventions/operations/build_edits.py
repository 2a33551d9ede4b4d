"""From names to tensors: ``build_edits(specs, llava, inputs, examples, context)`` gives each spec's edits on a batch.

context = collect_statistics(plan, llava, examples)              # once for a data set: means, norms, deviations
runs = choose_runs(plan, clean, pair=corrupt)                 # which run is changed, which is the other
cells = build_edits(plan.cells(llava), llava, runs.inputs, batch, context)
base = prepare_base(llava, runs.inputs, runs.other, readout=...)
run_cells(llava, base, cells, read)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interventions.engines.edits import Cell, Edit, Write
from interventions.operations.ablation import ablate_edits
from interventions.operations.corruption import EMBEDDINGS, blank_pictures, draw_noise, noise_edit, noised
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.operations.knockout import knockout_edits
from interventions.operations.patching import patch_edits
from interventions.operations.skipping import skip_edits
from interventions.operations.steering import steer_edits
from interventions.plan.groups import Masks
from interventions.plan.plan import (
    AblateOptions,
    CellSpec,
    InterventionPlan,
    NoOptions,
    PatchOptions,
    SkipOptions,
    SteerOptions,
)
from models.capture import capture
from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example


class Runs(NamedTuple):
    """The batches of a plan.

    Args:
        inputs: The one that is changed.
        other: The one that values are taken from, if any are.
        corrupt: The corrupt one; under noise it is the clean one, and ``corrupt_cell`` makes the difference.
    """

    inputs: Inputs
    other: Inputs | None
    corrupt: Inputs | None


def choose_runs(
    plan: InterventionPlan, clean: Inputs, *, pair: Inputs | None = None, resampled: Inputs | None = None
) -> Runs:
    """Which batch is changed and which is the other.

    Args:
        plan: Says the operation, its direction, and how the corrupt run is made.
        clean: The clean batch.
        pair: The batch of the pairs' corrupt examples, prepared with the clean answers; without it a plan that does
            not patch has no corrupt run.
        resampled: The batch of ``resampled_examples``, for resample ablation.

    Raises:
        ValueError: If a batch that the plan needs is missing.
    """
    kind = plan.corruption.kind
    corrupt = pair if kind == "pair" else (blank_pictures(clean) if kind == "blank" else clean)
    if isinstance(plan.options, PatchOptions):
        if corrupt is None:
            raise UserError(f"pair must be given for op {plan.op!r}, got None. Or corrupt by 'blank' or 'noise'.")
        if plan.options.direction == "denoise":
            return Runs(corrupt, clean, corrupt)
        return Runs(clean, None if kind == "noise" else corrupt, corrupt)
    if isinstance(plan.options, AblateOptions) and plan.options.kind == "resample":
        if resampled is None:
            raise UserError("resampled must be given for resample ablation, got None. resampled_examples makes them.")
        return Runs(clean, resampled, corrupt)
    return Runs(clean, None, corrupt)


def corrupt_cell(llava: Llava, inputs: Inputs, context: DatasetStatistics, *, seed: int | None = None) -> Cell:
    """What makes ``Runs.corrupt`` corrupt: noise on its image embeddings, or nothing.

    Args:
        llava: The model.
        inputs: ``Runs.corrupt``.
        context: Holds the plan and the embeddings' deviation.
        seed: Of the noise; None for the plan's first.
    """
    if context.plan.corruption.kind != "noise":
        return Cell(())
    return Cell((noise_edit(noise_of(llava, inputs, context, seed)),))


def build_edits(
    specs: Sequence[CellSpec],
    llava: Llava,
    inputs: Inputs,
    examples: Sequence[Example],
    context: DatasetStatistics,
    *,
    seed: int | None = None,
) -> list[Cell]:
    """The edits of every spec on a batch.

    Args:
        specs: Of ``context.plan`` and one operation.
        llava: The model.
        inputs: ``Runs.inputs``: the batch that is changed.
        examples: The clean ones of the batch, in either direction: their focus boxes are where ``object`` is.
        context: What ``collect_statistics`` found.
        seed: Of the noise, where noise corrupts; None for the plan's first.

    Raises:
        ValueError: If an example lacks a group's positions, or the context a value; for transplants, which change
            weights and not a run.
    """
    masks = Masks(llava, inputs, examples)
    plan, options = context.plan, context.plan.options
    noise = None
    if isinstance(options, PatchOptions) and plan.corruption.kind == "noise":
        noise = noise_of(llava, inputs, context, seed)
    noisy: dict[tuple[Site, str], Tensor] = {}
    if noise is not None and isinstance(options, PatchOptions) and options.direction == "noise":
        noisy = _noisy_values(specs, masks, noise)
    cells = []
    for spec in specs:
        edits: tuple[Edit, ...]
        match options:
            case PatchOptions(direction="denoise"):
                edits = (*(() if noise is None else (noise_edit(noise),)), *patch_edits(spec, masks))
            case PatchOptions() if noise is not None:
                edits = tuple(_noising_edit(site, spec, masks, noise, noisy) for site in spec.sites)
            case PatchOptions():
                edits = patch_edits(spec, masks)
            case AblateOptions():
                edits = ablate_edits(spec, masks, options, context.means)
            case SkipOptions():
                edits = skip_edits(spec, masks, options)
            case SteerOptions():
                edits = steer_edits(spec, masks, options, context.directions, context.norms)
            case NoOptions():
                edits = knockout_edits(spec, masks)
            case _:
                raise UserError(
                    f"op must change a run, got {spec.op!r}. interventions.operations.transplant changes weights."
                )
        cells.append(Cell(edits))
    return cells


def noise_of(llava: Llava, inputs: Inputs, context: DatasetStatistics, seed: int | None = None) -> Tensor:
    """The noise of a plan on a batch, ``image token d_model``.

    Raises:
        ValueError: If the context does not know how far embeddings deviate.
    """
    if context.deviation is None:
        raise UserError("context must hold the embeddings' deviation for noise, got None. collect_statistics finds it.")
    corruption = context.plan.corruption
    seed = corruption.seeds[0] if seed is None else seed
    return draw_noise(llava, inputs, deviation=corruption.scale * context.deviation, seed=seed)


def _noisy_values(specs: Sequence[CellSpec], masks: Masks, noise: Tensor) -> dict[tuple[Site, str], Tensor]:
    """What the noisy run has at the specs' sites and groups, in the columns of the batch."""
    by_group: dict[str, set[Site]] = {}
    for spec in specs:
        by_group.setdefault(spec.tokens, set()).update(site for site in spec.sites if site != EMBEDDINGS)
    found: dict[tuple[Site, str], Tensor] = {}
    for text, sites in by_group.items():
        if not sites:
            continue
        mask = masks.at("language_model", text)
        with noised(masks.llava, masks.inputs, noise):
            values = capture(masks.llava, masks.inputs, sorted(sites), tokens=mask)
        for site in sites:
            whole = torch.zeros(*mask.shape, *values[site].shape[2:], dtype=values[site].dtype, device=mask.device)
            whole[mask] = values[site][values.mask[site]]
            found[site, text] = whole
    return found


def _noising_edit(
    site: Site, spec: CellSpec, masks: Masks, noise: Tensor, noisy: dict[tuple[Site, str], Tensor]
) -> Write:
    """Puts the noisy run's values into the clean one."""
    mask = masks.at(site.part, spec.tokens)
    if site == EMBEDDINGS:
        return Write(site, mask, noise, add=True)
    return Write(site, mask, noisy[site, spec.tokens], spec.heads)
