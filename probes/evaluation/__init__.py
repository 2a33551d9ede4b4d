"""Grouped cross-validation of probes: folds, strengths of penalties, scores with intervals, controls, p-values.

Knows activation matrices and labels; knows nothing of models or of files.
"""

from probes.evaluation.cross_validation import evaluate
from probes.evaluation.folds import plan_folds

__all__ = ["evaluate", "plan_folds"]
