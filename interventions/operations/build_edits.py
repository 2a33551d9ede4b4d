"""The edits of each cell of a plan: ``build_edits(specs, llava, inputs, examples, statistics)``.

statistics = collect_statistics(plan, llava, examples)        # once for a data set: means, norms, deviations
runs = choose_runs(plan, clean, pair=corrupt)                 # which run is changed, and which is the other run
cells = build_edits(plan.cells(llava), llava, runs.inputs, batch, statistics)
base = prepare_base(llava, runs.inputs, runs.other, readout=...)
run_cells(llava, base, cells, read)
"""

from collections.abc import Callable, Sequence

from interventions.engines.edits import Cell, Edit
from interventions.operations import ablation, knockout, patching, skipping, steering
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.operations.prepare_batch import PreparedBatch, prepare_batch
from interventions.plan.cells import CellSpec
from interventions.plan.options import Op
from models.inputs import Inputs
from models.llava import Llava
from tasks.errors import UserError
from tasks.example import Example

# Every operation that edits a forward pass; transplants change weights.
EDITS: dict[Op, Callable[[CellSpec, PreparedBatch], tuple[Edit, ...]]] = {
    "patch": patching.edits,
    "attribute": patching.edits,
    "ablate": ablation.edits,
    "knockout": knockout.edits,
    "skip": skipping.edits,
    "steer": steering.edits,
}


def build_edits(
    specs: Sequence[CellSpec],
    llava: Llava,
    inputs: Inputs,
    examples: Sequence[Example],
    statistics: DatasetStatistics,
    *,
    seed: int | None = None,
) -> list[Cell]:
    """The edits of each cell of ``statistics.plan`` on a batch.

    ``inputs`` is ``Runs.inputs``, the batch that is changed; ``examples`` are its clean examples for both directions of
    patching, since their boxes locate ``object``. ``seed`` seeds the noise; None takes the plan's first seed.

    Raises:
        UserError: If an example has no position of a group, a statistic is missing, or the operation is transplant.

    Example:
        >>> from interventions.plan.plan import InterventionPlan
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> plan = InterventionPlan("knockout", tokens=("image->last",), layers="1")
        >>> [cell] = build_edits(plan.cells(llava), llava, inputs, inputs.examples, DatasetStatistics(plan))
        >>> [edit.layer for edit in cell.edits]
        [1]
    """
    op = statistics.plan.op
    if op not in EDITS:
        raise UserError(f"op must be one of {', '.join(EDITS)}, got {op!r}. transplanted() changes weights.")
    batch = prepare_batch(specs, llava, inputs, examples, statistics, seed)
    return [Cell(EDITS[op](spec, batch)) for spec in specs]
