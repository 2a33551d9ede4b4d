"""Layer plans, their training, what they cost, and how several plans compare.

``tune(llava, data, layers=...)`` is one run, ``run_tuning(TuningConfig(...))`` one with all options, and
``run_compare(CompareConfig(...))`` several. This package uses models, data and run directories. Of probes and
interventions it uses only the tables that they write.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.compare.compare import run_compare
    from tuning.compare.config import CompareConfig, CompareData
    from tuning.config import DataOptions, Optimisation, PlanOptions, RunOptions, TuningConfig
    from tuning.in_memory import tune
    from tuning.plan.apply import apply_plan
    from tuning.plan.default_plans import default_plans
    from tuning.plan.layers import select_layers
    from tuning.plan.plan import LayerPlan, Lisa, Lora
    from tuning.plan.resolve import resolve
    from tuning.run import FinishedTuning, run_tuning

__all__ = [
    "CompareConfig",
    "CompareData",
    "DataOptions",
    "FinishedTuning",
    "LayerPlan",
    "Lisa",
    "Lora",
    "Optimisation",
    "PlanOptions",
    "RunOptions",
    "TuningConfig",
    "apply_plan",
    "default_plans",
    "resolve",
    "run_compare",
    "run_tuning",
    "select_layers",
    "tune",
]
_MODULES = {
    "compare.compare": "run_compare",
    "compare.config": "CompareConfig CompareData",
    "config": "DataOptions Optimisation PlanOptions RunOptions TuningConfig",
    "in_memory": "tune",
    "plan.apply": "apply_plan",
    "plan.default_plans": "default_plans",
    "plan.layers": "select_layers",
    "plan.plan": "LayerPlan Lisa Lora",
    "plan.resolve": "resolve",
    "run": "FinishedTuning run_tuning",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds."""
    module = next((module for module, names in _MODULES.items() if name in names.split()), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
