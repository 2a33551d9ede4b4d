"""Operations: how the name of an intervention becomes edits of a batch.

An operation that edits a run is a file with the function ``edits(spec, batch)`` and an entry of ``build_edits.EDITS``;
its options and defaults are an entry of ``OPERATIONS`` in ``interventions.plan.options``, which imports no torch.
Operations import plans and engines; neither imports operations. They know nothing of metrics or files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interventions.operations.build_edits import build_edits
    from interventions.operations.dataset_statistics import collect_statistics
    from interventions.operations.direct_attribution import direct_logit_attribution
    from interventions.operations.path_patching import Head, path_cells
    from interventions.operations.runs import choose_runs
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
_MODULES = {
    "build_edits": "build_edits",
    "dataset_statistics": "collect_statistics",
    "direct_attribution": "direct_logit_attribution",
    "path_patching": "Head path_cells",
    "runs": "choose_runs",
    "transplant": "transplanted",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since torch takes seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
