"""Probes on all examples, with the strength that cross-validation chose."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from probes.evaluation.cross_validation import Result
from probes.evaluation.folds import FoldPlan, Mask, TargetPlan
from probes.linear.estimators import LogisticProbe
from probes.linear.registry import ESTIMATORS
from probes.linear.solver import Basis, rotate, solve_logistic, to_original

TOLERANCE = 1e-6  # gap between objective and minimum, relative to the objective; as in cross-validation

Rows = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def refit(x: Float[Tensor, "example d"], plan: FoldPlan, results: Mapping[str, Result]) -> dict[str, Rows]:
    """By target, coefficients "row d" and intercepts of a linear probe fitted on all fitted examples.

    The strength is the median of the folds' strengths.

    Args:
        x: Activations of the fitted examples.
        plan: Their folds, from `FoldPlan.fitted_only`.
        results: From `evaluate`.
    """
    strengths = {name: sorted(r.strengths)[len(r.strengths) // 2] for name, r in results.items() if r.strengths}
    estimators = {name: ESTIMATORS[results[name].probe][target.kind] for name, target in plan.targets.items()}
    logistic = [target for name, target in plan.targets.items() if estimators[name] is LogisticProbe]
    found: dict[str, Any] = {}
    if logistic:
        everyone = np.ones(len(x), dtype=bool)
        found.update(fit_logistic_probes(rotate(x), logistic, everyone, strengths))
    for name, estimator in estimators.items():
        if name not in found and hasattr(estimator, "direction"):
            probe = estimator(strengths[name]) if name in strengths else estimator()
            found[name] = probe.fit(x, plan.targets[name].truth)
    return {
        name: (np.atleast_2d(probe.coef_).astype(np.float32), np.atleast_1d(probe.intercept_).astype(np.float32))
        for name, probe in found.items()
    }


def fit_logistic_probes(
    basis: Basis, targets: Sequence[TargetPlan], training: Mask, strengths: Mapping[str, float]
) -> dict[str, LogisticProbe]:
    """Logistic probes of class codes on the training examples, solved together.

    Args:
        basis: All examples, rotated onto the axes of the training examples.
        targets: Class targets; every class occurs among the training examples.
        training: True for the examples to fit on.
        strengths: Weight of the penalty by target.
    """
    rows = basis.rows
    labels = torch.from_numpy(np.stack([t.truth for t in targets])).to(rows.device)
    weights = torch.from_numpy(training).to(rows).expand(len(targets), -1)
    levels = rows.new_tensor([strengths[t.name] for t in targets])
    fit = solve_logistic(basis, labels, weights, [len(t.classes) for t in targets], levels, tol=TOLERANCE)
    probes = {}
    for number, target in enumerate(targets):
        coef, intercept = to_original(basis, *fit.linear(number))
        probe = LogisticProbe(strengths[target.name], tol=TOLERANCE)
        probe.coef_, probe.intercept_ = coef.double().cpu().numpy(), intercept.double().cpu().numpy()
        probe.classes_, probe.n_iter_ = np.arange(len(target.classes)), int(fit.iterations[number])
        probe.n_features_in_ = coef.shape[1]
        probes[target.name] = probe
    return probes
