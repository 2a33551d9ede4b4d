"""Changes to a forward pass and what they do to the answer: patching, ablation, knockout, skipping, steering, and more.

Plans, operations and engines are sub-packages; ``in_memory`` has the short forms for a notebook, ``sweep`` the command
``patch-sweep``. The package uses models and examples. It does not depend on probes or training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interventions.in_memory import (
        ablated,
        attribution,
        direct_attribution,
        knocked_out,
        patch,
        patched,
        path_patch,
        skipped,
        steered,
    )
    from interventions.plan.plan import InterventionPlan
    from interventions.sweep import run_patch_sweep

__all__ = [
    "InterventionPlan",
    "ablated",
    "attribution",
    "direct_attribution",
    "knocked_out",
    "patch",
    "patched",
    "path_patch",
    "run_patch_sweep",
    "skipped",
    "steered",
]
_MODULES = {
    "in_memory": "ablated attribution direct_attribution knocked_out patch patched path_patch skipped steered",
    "plan.plan": "InterventionPlan",
    "sweep": "run_patch_sweep",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since torch takes seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
