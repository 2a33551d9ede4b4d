"""Run interventions: ``base = prepare_base(llava, inputs, other, readout=...)``, then ``run_cells(llava, base, ...)``.

Two engines give the same numbers. ``"full"`` runs the complete model once per cell; ``"incremental"`` computes only
what a cell can change, for many cells at a time.
"""

from collections.abc import Sequence

from torch import Tensor

from interventions.engines.base_runs import Base, Read, prepare_base
from interventions.engines.checks import check_cells
from interventions.engines.edits import Cell
from interventions.engines.full_forward import run_full
from interventions.engines.incremental import run_incremental
from interventions.engines.names import EngineName, check_engine
from models.llava import Llava
from tasks.errors import UserError

__all__ = ["Base", "EngineName", "prepare_base", "run_cells"]


def run_cells(
    llava: Llava,
    base: Base,
    cells: Sequence[Cell],
    read: Read,
    *,
    engine: EngineName = "incremental",
    cells_at_once: int | None = None,
) -> list[Tensor]:
    """The result of ``read`` on the logits of each cell, in the order of the cells.

    Edits of a cell apply in the order of the forward pass, edits at one site in the order given. A ``Hold`` keeps the
    input of a block, including writes at ``resid_pre``; a write at ``resid_post`` comes after it. In the vision tower,
    ``resid_pre`` of a block is ``resid_post`` of the block below, also for the projector, which reads the input of the
    last block.

    Args:
        llava: The model.
        base: The result of ``prepare_base``.
        cells: Each is applied to the unchanged run.
        read: Called once for each cell, in any order, with float32 logits at ``base.readout``, zeros at unused slots.
        engine: ``"incremental"``, or ``"full"`` for plain forwards.
        cells_at_once: Number of cells that ``incremental`` computes together; None chooses by memory.

    Raises:
        UserError: Before any forward, if a cell is invalid (``checks.check_cells``), the engine is unknown, or the base
            was prepared for the other engine.
        CaptureError: If a site did not fire.

    Source: activation patching after Meng et al. 2022, "Locating and Editing Factual Associations in GPT",
        arXiv 2202.05262; attention knockout after Geva et al. 2023, "Dissecting Recall of Factual Associations in
        Auto-Regressive Language Models", arXiv 2304.14767.

    Example:
        >>> import numpy as np, torch
        >>> from interventions.engines.edits import Write
        >>> from models import Site, load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> base = prepare_base(llava, inputs, readout=torch.tensor([[inputs.n_positions - 1]]))
        >>> image = inputs.input_ids == llava.image_token_id
        >>> zeros = Cell((Write(Site.parse("blocks.1.hook_resid_post"), image, torch.zeros(1)),))
        >>> [logits] = run_cells(llava, base, [zeros], lambda logits: logits)
        >>> bool((logits != base.logits).any())
        True
    """
    check_engine(engine)
    if cells_at_once is not None and cells_at_once < 1:
        raise UserError(f"cells_at_once must be at least 1, got {cells_at_once}. None chooses by memory.")
    if engine == "incremental" and base.prefix is None:
        raise UserError("engine must be 'full' for a base prepared for it, got 'incremental'. Prepare a new base.")
    check_cells(llava, base, cells)
    if engine == "full":
        return run_full(llava, base, cells, read)
    return run_incremental(llava, base, cells, read, cells_at_once)
