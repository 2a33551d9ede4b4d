"""Layer skipping: some positions pass blocks unchanged, or enter the language model at a later layer."""

from interventions.engines.edits import Cut, Edit, Hold
from interventions.operations.prepare_batch import PreparedBatch
from interventions.plan.cells import CellSpec
from interventions.plan.options import SkipOptions


def edits(spec: CellSpec, batch: PreparedBatch) -> tuple[Edit, ...]:
    """Hold the group's residual stream in every layer of the window.

    With the window ``"onward"`` the group is not updated from a layer on; with ``"up-to"`` it keeps its embedding until
    after a layer. If ``hidden``, no other position attends to the group in these layers.

    Source: frozen visual tokens in Yuan et al. 2025, "ShortV: Efficient Multimodal Large Language Models by Freezing
        Visual Tokens in Ineffective Layers", arXiv 2504.00502.
    """
    mask = batch.masks.at("language_model", spec.tokens)
    holds = tuple(Hold(layer, mask) for layer in spec.layers)
    if not batch.options(SkipOptions).hidden:
        return holds
    everyone = batch.masks.inputs.attention_mask.bool()
    return (*holds, *(Cut(layer, everyone, mask) for layer in spec.layers))
