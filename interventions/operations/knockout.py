"""Attention knockout: positions of one group do not attend to positions of another group, in some layers and heads.

``image->question`` names the direction of information: queries at the question do not attend to keys at the image.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.engines.edits import Cut, Edit
from interventions.operations.prepare_batch import PreparedBatch
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import FLOW
from tasks.errors import UserError


def edits(spec: CellSpec, batch: PreparedBatch) -> tuple[Edit, ...]:
    """Cut the edges from the source's keys to the target's queries in every layer of the window.

    As a target, ``last`` includes the positions of the answer, so that the cut applies while a longer answer is
    generated; as a source it is the last position of the prompt. The edge from a position to itself stays.

    Raises:
        UserError: If an example has no such edge.

    Source: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models",
        arXiv 2304.14767; between modalities in Zhang et al. 2024, "Cross-modal Information Flow in Multimodal Large
        Language Models", arXiv 2411.18620.
    """
    queries, keys = ends(spec.tokens, batch.masks)
    edges = queries & (keys.int().cumsum(1) - keys.int() > 0)
    missing = (~edges.any(1)).nonzero().flatten().tolist()
    if missing:
        raise UserError(
            f"knockout must cut an edge in every example, got none for {spec.tokens!r} in row {missing[0]} of the "
            "batch. Attention is causal: the source must come before the target."
        )
    return tuple(Cut(layer, queries, keys, spec.heads) for layer in spec.layers)


def ends(tokens: str, masks: Masks) -> tuple[Bool[Tensor, "example pos"], Bool[Tensor, "example pos"]]:
    """The queries and the keys of ``source->target``: the columns of its target and of its source."""
    source, target = tokens.split(FLOW)
    keys = masks.at("language_model", source)
    queries = masks.at("language_model", target)
    if target.strip() == "last":
        inputs = masks.inputs
        columns = torch.arange(inputs.n_positions, device=inputs.input_ids.device)
        stops = torch.tensor([[layout.prompt_stop] for layout in inputs.layout], device=columns.device)
        queries = queries | ((columns >= stops) & inputs.attention_mask.bool())
    return queries, keys
