"""The operations of a patch sweep, for the estimate of its time."""

from collections.abc import Sequence

from interventions.pairs import Pair
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import FLOW
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs
from models.llava import Llava

# Measured on smol and one CPU thread, 2026-11-29; the runs are computed from their products.
VALUE_SECONDS = 2e-5  # of a value's share of the tables
FIGURE_SECONDS = 1.5
# Time of a run over that of its products: 1.0 for token groups, 1.6 for single patches, 1.8 for knockouts.
OVERHEAD = 1.4


def flops_of_pair(
    plan: InterventionPlan, llava: Llava, specs: Sequence[CellSpec], first: Inputs, pairs: Sequence[Pair],
    caption_tokens: int = 0,
) -> float:  # fmt: skip
    """Floating-point operations of the matrix products of one pair: two base runs and every cell.

    A cell of engine ``incremental`` computes the positions from its first changed one on, in the layers above its
    first changed one. Attribution patching takes a forward and a backward pass instead of the cells.

    Args:
        plan: The plan.
        llava: The model.
        specs: The cells of the plan.
        first: Inputs of the first batch.
        pairs: Its pairs.
        caption_tokens: Tokens of a caption that each run generates; 0 if none does.
    """
    real = first.layout[0].real
    length = real.stop - real.start
    in_blocks = 2.0 * sum(p.numel() for p in llava.blocks.parameters())
    tower = 2.0 * llava.n_image_tokens * sum(p.numel() for p in llava.vision_blocks.parameters())
    a_run = length * in_blocks + tower
    if caption_tokens:
        return (2 + len(specs)) * (a_run + caption_tokens * in_blocks)
    if plan.op == "attribute":
        return 2 * a_run + 3 * a_run
    if plan.op == "transplant":
        return (2 + len(specs)) * a_run
    masks = Masks(llava, first, [pair.clean for pair in pairs])
    cells = 0.0
    for spec in specs:
        if plan.engine == "full" or spec.part != "language_model" or not spec.tokens:
            cells += a_run
            continue
        changed = masks.at(spec.part, spec.tokens.rpartition(FLOW)[2])[0]
        start = int(changed.nonzero()[0]) - real.start
        above = 1 - min(spec.layers, default=0) / llava.n_layers
        cells += (length - start) * above * in_blocks
    return 2 * a_run + cells * (len(plan.corruption.seeds) if plan.corruption.kind == "noise" else 1)
