"""What all commands share: options, run directories, tables, resampling statistics, processes, progress and errors.

It does not depend on what a command computes. Probes, interventions and tuning import from its modules.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "FinishedRun": "records.run",
    "ModelOptions": "records.options",
    "ProgressBars": "records.progress",
    "adjust_p": "records.resampling",
    "bootstrap_means": "records.resampling",
    "permutation_p": "records.resampling",
    "sign_flip_p": "records.resampling",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use; ``--help`` imports this package and needs neither pandas nor torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'records' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
