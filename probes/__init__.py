"""Reading activations: probes with scores and controls, their directions, and maps over the picture.

It uses activations and labels. It does not change a forward pass or train the model. ``probe`` runs on a model in
memory, ``run_sweep`` is the command ``probe-sweep``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.config import SweepConfig
    from probes.in_memory import ProbeResult, direction, probe
    from probes.linear.estimators import LogisticProbe, MassMeanProbe, RidgeClassifierProbe, RidgeProbe
    from probes.linear.mlp import MLPProbe, MLPRegressorProbe
    from probes.linear.saving import FittedProbe, load_probes
    from probes.maps.files import read_maps
    from probes.sweep import run_sweep

__all__ = [
    "FittedProbe",
    "LogisticProbe",
    "MLPProbe",
    "MLPRegressorProbe",
    "MassMeanProbe",
    "ProbeResult",
    "RidgeClassifierProbe",
    "RidgeProbe",
    "SweepConfig",
    "direction",
    "load_probes",
    "probe",
    "read_maps",
    "run_sweep",
]
_MODULES = {
    "config": "SweepConfig",
    "in_memory": "ProbeResult direction probe",
    "linear.estimators": "LogisticProbe MassMeanProbe RidgeClassifierProbe RidgeProbe",
    "linear.mlp": "MLPProbe MLPRegressorProbe",
    "linear.saving": "FittedProbe load_probes",
    "maps.files": "read_maps",
    "sweep": "run_sweep",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since torch takes seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
