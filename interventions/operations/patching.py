"""Activation patching: put activations of one run into another run.

Denoising puts clean activations into the corrupt run: which activations suffice for the answer? Noising puts corrupt
activations into the clean run: which are necessary? Both make the same edits; ``choose_runs`` chooses the run.
"""

from interventions.engines.edits import OTHER, Edit, Write
from interventions.operations.corruption import EMBEDDINGS, noise_edit
from interventions.operations.prepare_batch import PreparedBatch
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import PatchOptions


def edits(spec: CellSpec, batch: PreparedBatch) -> tuple[Edit, ...]:
    """Write the other run's activations at the site in every layer of the window.

    If the corruption is noise, denoising adds the noise and then writes clean activations; noising writes activations
    that were captured from a noisy run.

    Source: Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis",
        arXiv 2004.12265; Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262.
    """
    if batch.noise is None:
        return take_other(spec, batch.masks)
    if batch.options(PatchOptions).direction == "denoise":
        return (noise_edit(batch.noise), *take_other(spec, batch.masks))
    mask = batch.masks.at(spec.part, spec.tokens)
    return tuple(
        Write(site, mask, batch.noise, add=True)
        if site == EMBEDDINGS
        else Write(site, mask, batch.noisy[site, spec.tokens], spec.heads)
        for site in spec.sites
    )


def take_other(spec: CellSpec, masks: Masks) -> tuple[Write, ...]:
    """Write the other run's activations at the site in every layer of the window."""
    mask = masks.at(spec.part, spec.tokens)
    return tuple(Write(site, mask, OTHER, spec.heads) for site in spec.sites)
