"""``import laccolith as lc``: the names that a notebook needs, each imported when it is first used.

    llava = lc.load("smol")
    effects = lc.patch(llava, clean, corrupt, site="resid_post", layers=12, tokens="image")

This file only lists the module of each name. If a file or folder of the user shadows a package, the import raises an
error.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGES = ("models", "tasks", "records", "probes", "interventions", "tuning", "figures")
_DEFINED_IN = {
    "Llava": "models.llava",
    "Site": "models.sites",
    "all_sites": "models.sites",
    "capture_examples": "models.capture",
    "load": "models.loading.load",
    "randomised": "models.loading.load",
    "Example": "tasks.example",
    "UserError": "tasks.errors",
    "examples_from": "tasks.examples_from",
    "direction": "probes",
    "probe": "probes",
    "ablated": "interventions.in_memory.context_managers",
    "attribution": "interventions.in_memory.measure",
    "direct_attribution": "interventions.in_memory.measure",
    "knocked_out": "interventions.in_memory.context_managers",
    "patch": "interventions.in_memory.measure",
    "patched": "interventions.in_memory.context_managers",
    "path_patch": "interventions.in_memory.measure",
    "skipped": "interventions.in_memory.context_managers",
    "steered": "interventions.in_memory.context_managers",
    "tune": "tuning",
}
_SUBMODULES = {"figures": "figures", "tuning": "tuning"}

__all__ = sorted([*_DEFINED_IN, *_SUBMODULES])


def _check_hidden() -> None:
    """Raise ``ImportError`` unless every package is beside this one."""
    root = Path(__file__).resolve().parents[1]
    for name in _PACKAGES:
        spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
        places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
        if [Path(str(place)).resolve() for place in places] != [root / name]:
            found = ", ".join(map(str, places)) or "nothing"
            raise ImportError(
                f"package {name!r} must be laccolith's own, got {found}, which hides it. Rename that folder or file, "
                "or start Python in another folder."
            )


def __getattr__(name: str) -> Any:
    """The public name, imported now."""
    if name in _SUBMODULES:
        return import_module(_SUBMODULES[name])
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'laccolith' has no attribute {name!r}. It has: {', '.join(__all__)}.")
    value = globals()[name] = getattr(import_module(_DEFINED_IN[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names."""
    return __all__


_check_hidden()
