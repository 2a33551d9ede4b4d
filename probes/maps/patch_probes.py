"""Probes for patch maps, fitted on pooled activations without the groups of the map examples."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.evaluation.cross_validation import STRENGTHS, choose_strengths
from probes.evaluation.folds import FoldPlan, InnerSplit, Mask, TargetPlan
from probes.evaluation.jobs import fit_logistic
from probes.evaluation.refit import fit_logistic_probes
from probes.linear.estimators import LogisticProbe
from probes.linear.registry import find_probe, fit_probe, new_probe
from probes.linear.solver import rotate

_RANKING = 1e-1  # loose tolerance that is enough to rank strengths a factor of ten apart


def fit_patch_probes(
    x: Float[Tensor, "example d"], targets: Sequence[TargetPlan], training: Mask, plan: FoldPlan, probe: str
) -> dict[str, Any]:
    """Fit a probe of class codes for each class target on the training examples.

    Column c of ``predict_proba`` belongs to class code c. Every class must occur among the training examples. The
    strength of a logistic probe is the one with the best score over the plan's folds, restricted to the training
    examples, so that the map examples do not influence it.
    """
    rows = torch.from_numpy(training).to(x.device)
    _, estimator = find_probe(probe, "class")
    if estimator is not LogisticProbe:
        groups = plan.groups[training]
        return {t.name: fit_probe(new_probe(estimator, plan.seed), x[rows], t.truth[training], groups) for t in targets}
    if not targets:
        return {}
    basis = rotate(x, fitted=rows)
    path = sorted(STRENGTHS, reverse=True)
    judged = [replace(t, inner=_splits(t, training, plan.folds)) for t in targets]
    picks = choose_strengths(judged, path, 1, lambda jobs, levels: fit_logistic(basis, jobs, levels, _RANKING))
    return dict(fit_logistic_probes(basis, targets, training, {name: pick[0] for name, pick in picks.items()}))


def _splits(target: TargetPlan, training: Mask, folds: int) -> tuple[InnerSplit, ...]:
    """The target's folds among the training examples, without empty ones."""
    pairs = [(training & (target.fold != k), training & (target.fold == k)) for k in range(folds)]
    return tuple(InnerSplit(train, ((0, judge),)) for train, judge in pairs if train.any() and judge.any())
