"""Operations: how the name of an intervention becomes edits of a batch.

An operation that edits a run is a file with the function ``edits(spec, batch)`` and an entry of ``build_edits.EDITS``;
its options and defaults are an entry of ``OPERATIONS`` in ``interventions.plan.options``, which imports no torch.
Operations import plans and engines; neither imports operations. They do not use metrics or files.
"""

from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs
from interventions.operations.dataset_statistics import collect_statistics
from interventions.operations.direct_attribution import direct_logit_attribution
from interventions.operations.path_patching import Head, path_cells
from interventions.operations.transplant import transplanted

__all__ = [
    "Head",
    "build_edits",
    "choose_runs",
    "collect_statistics",
    "direct_logit_attribution",
    "path_cells",
    "transplanted",
]
