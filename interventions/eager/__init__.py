"""Interventions in a notebook: context managers for a model in memory, and functions that measure one effect.

Knows how a call becomes a plan's cells and how their edits hold while text is generated. Knows nothing of files, data
sets or run directories. The numbers are those of ``patch-sweep``.
"""

from interventions.eager.context_managers import ablated, knocked_out, patched, skipped, steered
from interventions.eager.measure import attribution, direct_attribution, patch, path_patch

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
