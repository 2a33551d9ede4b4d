"""Figures from saved tables, and the definitions of tables and effects that figures and summaries share.

``draw_run(folder)`` draws all figures of a run directory; every ``draw_*`` function draws one kind of figure, also into
your own Axes. The package imports none of the other packages. It does not depend on models or data.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "build_report": "figures.report.page",
    "draw_accuracy": "figures.plans.scores",
    "draw_cost_ratios": "figures.plans.cost",
    "draw_cost_retention": "figures.plans.cost",
    "draw_curves": "figures.curves",
    "draw_head_map": "figures.effect_grid",
    "draw_learning_curve": "figures.plans.learning_curve",
    "draw_patch_map": "figures.patch_map",
    "draw_plan_diagram": "figures.plans.plan_diagram",
    "draw_probe_map": "figures.patch_map",
    "draw_retention": "figures.plans.scores",
    "draw_run": "figures.runs",
    "draw_score_by_layer": "figures.score_by_layer",
    "draw_token_map": "figures.effect_grid",
    "example_table": "figures.read_run",
    "save_figure": "figures.style",
    "with_effect": "figures.effects",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use; importing the drawing libraries takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'figures' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
