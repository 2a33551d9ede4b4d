"""Steering: add a direction, such as a mass-mean probe's, to an activation."""

from interventions.engines.edits import Edit, Write
from interventions.operations.directions import fitting_direction
from interventions.operations.prepare_batch import PreparedBatch
from interventions.plan.cells import CellSpec
from interventions.plan.options import SteerOptions
from tasks.errors import UserError


def edits(spec: CellSpec, batch: PreparedBatch) -> tuple[Edit, ...]:
    """Add alpha times the unit direction at the site in every layer of the window.

    Source: Turner et al. 2023, "Steering Language Models With Activation Engineering", arXiv 2308.10248; mass-mean
        directions in Marks and Tegmark 2023, "The Geometry of Truth", arXiv 2310.06824.
    """
    options, statistics, masks = batch.options(SteerOptions), batch.statistics, batch.masks
    mask = masks.at(spec.part, spec.tokens)
    writes = []
    for site in spec.sites:
        length = options.alpha
        if options.unit == "norm":
            if (site, spec.tokens) not in statistics.norms:
                raise UserError(
                    f"norms must contain {str(site)!r} for group {spec.tokens!r}, got none. Call collect_statistics, "
                    "or use the unit 'absolute'."
                )
            length *= statistics.norms[site, spec.tokens]
        direction = fitting_direction(statistics.directions, options.direction, site, masks.llava, masks.inputs)
        writes.append(Write(site, mask, length * direction, add=True))
    return tuple(writes)
