"""Runs interventions: ``base = prepare_base(llava, inputs, other, readout=...)``, then ``run_cells(llava, base, ...)``.

Two engines give the same numbers. ``"full"`` runs the whole model once for each cell; ``"incremental"`` computes what a cell
can change and nothing else, many cells at a time.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from interventions.engines.base_runs import Base, EngineName, prepare_base
from interventions.engines.checks import check_cells
from interventions.engines.edits import Cell
from interventions.engines.full_forward import run_full
from interventions.engines.incremental import run_incremental
from models.llava import Llava
from tasks.errors import UserError

__all__ = ["Base", "EngineName", "prepare_base", "run_cells"]


def run_cells(
    llava: Llava,
    base: Base,
    cells: Sequence[Cell],
    read: Callable[[Float[Tensor, "example slot vocab"]], Tensor],
    *,
    engine: EngineName = "incremental",
    cells_at_once: int | None = None,
) -> list[Tensor]:
    """What ``read`` makes of the logits of each cell, in the order of the cells.

    Edits of a cell act in the order of the forward pass; where several stand at one site, in the order given. What is
    held in a block is what entered it, writes at ``resid_pre`` included; a write at ``resid_post`` comes after holding.
    In the vision tower, ``resid_pre`` of a block is ``resid_post`` of the one below, also for the projector, which
    reads in front of the last block.

    Args:
        llava: The model.
        base: What ``prepare_base`` returned.
        cells: Each on its own, starting from the unchanged run.
        read: Gets a cell's float32 logits at ``base.readout``, zeros at unused slots, and is called once for each cell,
            in any order. The unchanged run's are ``base.logits``.
        engine: ``"incremental"``, or ``"full"`` for plain forwards.
        cells_at_once: How many cells ``incremental`` computes together; None lets it bound the memory that they take.

    Raises:
        ValueError: Before any forward, if a cell cannot be run (``checks.check_cells``), the engine is unknown, or the
            base was prepared for the other engine.
        CaptureError: If a site did not fire.

    Source: activation patching after Meng et al. 2022, "Locating and Editing Factual Associations in GPT",
        arXiv 2202.05262; attention knockout after Geva et al. 2023, "Dissecting Recall of Factual Associations in
        Auto-Regressive Language Models", arXiv 2304.14767.
    """
    if engine not in ("incremental", "full"):
        raise UserError(f"engine must be 'incremental' or 'full', got {engine!r}. Both give the same numbers.")
    if cells_at_once is not None and cells_at_once < 1:
        raise UserError(f"cells_at_once must be at least 1, got {cells_at_once}. None chooses by memory.")
    if engine == "incremental" and base.prefix is None:
        raise UserError(
            "engine must be 'full' for a base prepared for it, got 'incremental'. Prepare the base for 'incremental'."
        )
    check_cells(llava, base, cells)
    if engine == "full":
        return run_full(llava, base, cells, read)
    return run_incremental(llava, base, cells, read, cells_at_once)
