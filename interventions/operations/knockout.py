"""Attention knockout: positions of one group stop looking at those of another, in some layers and heads.

``image->question`` names the way of the information: the keys of the image are hidden from the queries of the question.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.engines.edits import Cut
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.plan import FLOW
from tasks.errors import UserError


def knockout_edits(spec: CellSpec, masks: Masks) -> tuple[Cut, ...]:
    """Cuts the edges from the source's keys to the target's queries in every layer of the window.

    As a target, ``last`` is the prompt's last position and every position of the answer behind it, so that the cut
    stays in force while a longer answer is given; as a source it is the prompt's last position. The edge from a
    position to itself stays.

    Args:
        spec: Of op ``"knockout"``, its tokens ``source->target``.
        masks: Of the batch that is changed.

    Raises:
        ValueError: If an example has no such edge, since attention looks back only.

    Source: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models",
        arXiv 2304.14767; between modalities in Zhang et al. 2024, "Cross-modal Information Flow in Multimodal Large
        Language Models", arXiv 2411.18620.
    """
    source, target = spec.tokens.split(FLOW)
    keys = masks.at("language_model", source)
    queries = masks.at("language_model", target)
    if target.strip() == "last":
        queries = queries | _answers(masks)
    edges = queries & (keys.int().cumsum(1) - keys.int() > 0)
    missing = (~edges.any(1)).nonzero().flatten().tolist()
    if missing:
        raise UserError(
            f"knockout must cut an edge in every example, got none for {spec.tokens!r} in row {missing[0]} of the "
            "batch. Attention looks back: the source must come before the target."
        )
    return tuple(Cut(layer, queries, keys, spec.heads) for layer in spec.layers)


def _answers(masks: Masks) -> Bool[Tensor, "example pos"]:
    """The positions behind the prompt, where there are any."""
    columns = torch.arange(masks.inputs.n_positions, device=masks.inputs.input_ids.device)
    stops = torch.tensor([[layout.prompt_stop] for layout in masks.inputs.layout], device=columns.device)
    return (columns >= stops) & masks.inputs.attention_mask.bool()
