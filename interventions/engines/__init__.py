"""Run edits of a forward pass: ``prepare_base`` runs a batch unchanged, ``run_cells`` with edits.

Its inputs are the model and edits as tensors. It does not depend on plans, token groups, metrics or files.
``README.md`` explains the incremental engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interventions.engines.base_runs import prepare_base
    from interventions.engines.edits import Cell, Cut, Hold, Write
    from interventions.engines.engine import run_cells

__all__ = ["Cell", "Cut", "Hold", "Write", "prepare_base", "run_cells"]
_MODULES = {"base_runs": "prepare_base", "edits": "Cell Cut Hold Write", "engine": "run_cells"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since torch takes seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
