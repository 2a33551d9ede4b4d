"""Drawing from saved tables, and the definitions of tables and effects that drawing and summaries share.

``draw_run(folder)`` draws all figures of a run directory; every ``draw_*`` function draws one kind of figure, also into
your own Axes. Models, data and how tables are computed are unknown here: nothing of the other packages is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from figures.curves import draw_curves
    from figures.effect_grid import draw_head_map, draw_token_map
    from figures.effects import with_effect
    from figures.patch_map import draw_patch_map, draw_probe_map
    from figures.plans.accuracy_by_family import draw_accuracy
    from figures.plans.cost_ratios import draw_cost_ratios
    from figures.plans.cost_retention import draw_cost_retention
    from figures.plans.learning_curve import draw_learning_curve
    from figures.plans.plan_diagram import draw_plan_diagram
    from figures.plans.retention import draw_retention
    from figures.report.page import build_report
    from figures.runs import draw_run
    from figures.saved import example_table
    from figures.score_by_layer import draw_score_by_layer
    from figures.style import save_figure

__all__ = [
    "build_report",
    "draw_accuracy",
    "draw_cost_ratios",
    "draw_cost_retention",
    "draw_curves",
    "draw_head_map",
    "draw_learning_curve",
    "draw_patch_map",
    "draw_plan_diagram",
    "draw_probe_map",
    "draw_retention",
    "draw_run",
    "draw_score_by_layer",
    "draw_token_map",
    "example_table",
    "save_figure",
    "with_effect",
]
_MODULES = {
    "curves": "draw_curves",
    "effect_grid": "draw_head_map draw_token_map",
    "effects": "with_effect",
    "patch_map": "draw_patch_map draw_probe_map",
    "plans.accuracy_by_family": "draw_accuracy",
    "plans.cost_ratios": "draw_cost_ratios",
    "plans.cost_retention": "draw_cost_retention",
    "plans.learning_curve": "draw_learning_curve",
    "plans.plan_diagram": "draw_plan_diagram",
    "plans.retention": "draw_retention",
    "report.page": "build_report",
    "runs": "draw_run",
    "saved": "example_table",
    "score_by_layer": "draw_score_by_layer",
    "style": "save_figure",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, since the drawing libraries take seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
