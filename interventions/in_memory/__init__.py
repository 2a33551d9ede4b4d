"""Interventions in a notebook: context managers for a model in memory, and functions that measure one effect.

It converts a call to cells of a plan and applies their edits while text is generated. It does not handle files, data
sets or run directories. Its results equal those of ``patch-sweep``.
"""

from interventions.in_memory.context_managers import ablated, knocked_out, patched, skipped, steered
from interventions.in_memory.measure import attribution, direct_attribution, patch, path_patch

__all__ = [
    "ablated",
    "attribution",
    "direct_attribution",
    "knocked_out",
    "patch",
    "patched",
    "path_patch",
    "skipped",
    "steered",
]
