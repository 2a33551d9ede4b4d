"""Layer skipping: some positions pass blocks unchanged, or enter the language model only behind some layer."""

from interventions.engines.edits import Cut, Hold
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.plan import SkipOptions


def skip_edits(spec: CellSpec, masks: Masks, options: SkipOptions) -> tuple[Hold | Cut, ...]:
    """Holds the group's residual stream in every layer of the window.

    With the window ``"onward"`` the group stops being updated at a layer; with ``"up-to"`` it stays as it was embedded
    until behind a layer.

    Args:
        spec: Of op ``"skip"``.
        masks: Of the batch that is changed.
        options: Whether others see the group's keys and values meanwhile. Where they do not, nobody but the position
            itself looks there.

    Source: frozen visual tokens in Yuan et al. 2025, "ShortV: Efficient Multimodal Large Language Models by Freezing
        Visual Tokens in Ineffective Layers", arXiv 2504.00502.
    """
    mask = masks.at("language_model", spec.tokens)
    holds = tuple(Hold(layer, mask) for layer in spec.layers)
    if options.visible:
        return holds
    everyone = masks.inputs.attention_mask.bool()
    return (*holds, *(Cut(layer, everyone, mask) for layer in spec.layers))
