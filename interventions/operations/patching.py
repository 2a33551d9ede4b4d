"""Activation patching: activations of one run put into another.

Denoising puts clean activations into the corrupt run and asks what suffices for the answer; noising puts corrupt ones
into the clean run and asks what is needed. Both are the same edit; which run is changed is the plan's business.
"""

from interventions.engines.edits import OTHER, Write
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks


def patch_edits(spec: CellSpec, masks: Masks) -> tuple[Write, ...]:
    """Writes the other run's values at the site in every layer of the window.

    Args:
        spec: Of op ``"patch"``; or ``"ablate"``, where the other run shows another picture.
        masks: Of the batch that is changed.

    Source: Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation Analysis",
        arXiv 2004.12265; Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262.
    """
    mask = masks.at(spec.part, spec.tokens)
    return tuple(Write(site, mask, OTHER, spec.heads) for site in spec.sites)
