"""Interventions as plain data: operations and their options, token groups, and the cells of a plan.

It defines the valid requests and checks them against a model. It does not run them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interventions.plan.cells import CellSpec
    from interventions.plan.plan import InterventionPlan

__all__ = ["CellSpec", "InterventionPlan"]
_MODULES = {"cells": "CellSpec", "plan": "InterventionPlan"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since torch takes seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
