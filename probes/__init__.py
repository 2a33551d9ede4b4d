"""What can be read from activations, and where: probes, their scores and controls, maps over the picture.

The folder knows activations and labels. It knows nothing of changing a forward pass or of training the model.

    result = probe(llava, examples, target="colour")
    result.plot()
    direction(result, "red", site="blocks.12.hook_resid_post")
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "probe": "probes.front",
    "direction": "probes.front",
    "ProbeResult": "probes.front",
    "FittedProbe": "probes.linear.saving",
    "load_probes": "probes.linear.saving",
    "LogisticProbe": "probes.linear.estimators",
    "RidgeProbe": "probes.linear.estimators",
    "RidgeClassifierProbe": "probes.linear.estimators",
    "MassMeanProbe": "probes.linear.estimators",
    "MLPProbe": "probes.linear.mlp",
    "MLPRegressorProbe": "probes.linear.mlp",
    "run_sweep": "probes.sweep",
    "SweepConfig": "probes.config",
    "read_maps": "probes.maps.files",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use; importing torch and scikit-learn takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
