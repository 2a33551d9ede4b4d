"""Grouped cross-validation of probes: folds, strengths of penalties, scores with intervals, controls, p-values.

Its inputs are activation matrices and labels. The package loads no model and writes no file.
"""

from probes.evaluation.cross_validation import evaluate
from probes.evaluation.folds import plan_folds

__all__ = ["evaluate", "plan_folds"]
