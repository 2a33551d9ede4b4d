"""Probes fitted on one set of activations and read on others of the same examples, out of fold.

cells = transfer(captions[12], [pictures[layer] for layer in layers], plan)   # one row of the matrix
cells["count"][3].score.value                                                 # read at layers[3]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from probes.evaluation.cross_validation import KINDS, RIDGE_STRENGTHS, STRENGTHS, choose_strengths
from probes.evaluation.folds import FoldPlan, TargetPlan
from probes.evaluation.jobs import BATCHED, Job
from probes.evaluation.scores import Permuted, Score, permute_classes, score_classes, score_values
from probes.evaluation.shuffled_ridge import agreement, permute_ridge
from probes.linear.registry import find_probe
from probes.linear.solver import Basis, check_activations, rotate
from records.resampling import shuffle_over_groups
from tasks.errors import UserError

Standardise = Literal["own", "source"]
_PAIRS = 2**18  # added to the seed, so that the shuffle of the pairs differs from those of folds and labels


@dataclass(frozen=True)
class TransferScore:
    """One probe read on one set of activations."""

    metric: str
    """``"balanced_accuracy"`` or ``"r2"``."""
    score: Score
    """Of every fitted example, each read by a probe that was fitted without its group."""
    shuffled: float
    """The same with the activations exchanged between groups at random."""
    permuted: Permuted
    """The score of the real labels and of labels shuffled over groups, in comparable units."""
    chance: float
    """The metric of the best constant prediction."""


def transfer(
    x: Float[Tensor, "example d_model"],
    others: Sequence[Float[Tensor, "row d_other"]],
    plan: FoldPlan,
    *,
    probe: Literal["logistic", "ridge"] = "logistic",
    standardise: Standardise = "own",
    tol: float = 1e-2,
) -> Mapping[str, tuple[TransferScore, ...]]:
    """Fit probes to ``x`` and read them on ``others``, which belong to the same examples.

    The probe that reads an example is fitted without its group, on either side, at the strength that inner folds of
    ``x`` choose. ``standardise="own"`` gives every set of activations mean 0 and scale 1 in each dimension by its own
    examples, without labels, so that a probe reads directions and not the distance between the sets; ``"source"`` uses
    mean and scale of ``x`` for all.

    Args:
        x: The activations to fit on.
        others: The activations to read, each with the width of ``x``; ``x`` itself is read too, first.
        plan: Folds over the examples.
        probe: Kind of probe; ridge regression for continuous targets.
        standardise: Mean and scale of what is read.
        tol: Tolerance of the logistic solver, as in a probe sweep.

    Returns:
        By target, the scores on ``x`` and then on each of ``others``.

    Raises:
        UserError: If widths or numbers of examples differ, or a value is not finite.

    Source: the distance between pictures and texts that ``"own"`` removes: Liang et al. 2022, "Mind the Gap:
        Understanding the Modality Gap in Multi-modal Contrastive Representation Learning", arXiv 2203.02053.

    Example:
        >>> import numpy as np
        >>> from probes.evaluation.folds import plan_folds
        >>> labels = np.arange(40) % 2
        >>> x = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3)) + 5 * labels[:, None])
        >>> found = transfer(x, [2 * x + 9], plan_folds({"label": labels}, groups=range(40)))
        >>> [cell.score.value for cell in found["label"]]
        [1.0, 1.0]
    """
    check_activations(x)
    for other in others:
        check_activations(other)
        if other.shape != x.shape:
            raise UserError(
                f"others must have {x.shape[0]} examples of width {x.shape[1]}, got {tuple(other.shape)}. Both sides "
                "come from the same examples and the same kind of site."
            )
    if len(x) != len(plan.groups):
        raise UserError(
            f"x must have one example per label ({len(plan.groups)}), got {len(x)}. Pass all of the plan's."
        )
    fitted = torch.from_numpy(plan.fitted).to(x.device)
    basis = rotate(x, fitted=fitted)
    read = torch.cat([_on_axes(basis, other, fitted, standardise) for other in others]) if others else None
    n, sets = len(x), 1 + len(others)
    found: dict[str, tuple[TransferScore, ...]] = {}
    for kind in KINDS:
        targets = [target for target in plan.targets.values() if target.kind == kind]
        if not targets:
            continue
        name, estimator = find_probe(probe, kind)
        fit = BATCHED[estimator]
        path = sorted(STRENGTHS if name == "logistic" else RIDGE_STRENGTHS, reverse=True)
        picks = choose_strengths(targets, path, plan.folds, partial(fit, basis, tol=3 * tol))
        jobs = [Job(t, "real", t.truth, plan.fitted & (t.fold != k), k) for t in targets for k in range(plan.folds)]
        strengths = [[picks[job.target.name][job.fold]] for job in jobs]
        outputs = fit(basis, jobs, strengths, tol, others=read)[0]
        for t in targets:
            predicted = np.zeros((sets, n), dtype=t.truth.dtype)
            for job, output in zip(jobs, outputs, strict=True):
                if job.target is t:
                    mine = t.fold == job.fold
                    predicted[:, mine] = output.reshape(sets, n)[:, mine]
            permuted: list[Permuted | None] = [None] * sets
            if kind == "continuous":
                permuted = [*permute_ridge(basis, t, plan, path, agreement, others=read)]
            found[t.name] = tuple(_scored(t, plan, row, one) for row, one in zip(predicted, permuted, strict=True))
    return found


def _on_axes(
    basis: Basis, other: Float[Tensor, "row d_other"], fitted: Tensor, standardise: Standardise
) -> Float[Tensor, "row rank"]:
    """Other activations on the axes of the basis, standardised by their own statistics or by those of the basis."""
    if standardise == "own":
        inside = other[fitted].to(torch.float64)
        centre = inside.mean(0)
        spread = (inside - centre).square().mean(0).sqrt()
        constant = spread <= 10 * torch.finfo(other.dtype).eps * centre.abs()
        scale = torch.where(constant, torch.ones_like(spread), spread)
        rows = ((other.to(torch.float64) - centre) / scale).masked_fill(constant, 0.0)
    else:
        rows = (other.to(torch.float64) - basis.centre) / basis.scale
    return rows.to(basis.rows.dtype) @ basis.rotation


def _scored(t: TargetPlan, plan: FoldPlan, predicted: npt.NDArray[Any], permuted: Permuted | None) -> TransferScore:
    """The score of out-of-fold predictions of all examples, with its controls; ``permuted`` is given for numbers."""
    inside, groups = plan.fitted, plan.groups[plan.fitted]
    truth: npt.NDArray[Any] = t.truth[inside]
    guess: npt.NDArray[Any] = predicted[inside]
    constant = np.zeros_like(t.truth)
    for k in range(plan.folds):
        train: npt.NDArray[Any] = t.truth[inside & (t.fold != k)]
        constant[t.fold == k] = np.bincount(train).argmax() if t.kind == "class" else train.mean()
    pairs = shuffle_over_groups(groups, generator=np.random.default_rng([plan.seed, _PAIRS]))

    def score(values: npt.NDArray[Any]) -> Score:
        if t.kind == "class":
            return score_classes(truth, values, len(t.classes), groups)["balanced_accuracy"]
        return score_values(truth, values, groups)["r2"]

    if permuted is None:
        permuted = permute_classes(truth, guess, len(t.classes), plan.permutations)
        chance = 1 / len(np.unique(truth))
    else:
        chance = score(constant[inside]).value
    metric = "balanced_accuracy" if t.kind == "class" else "r2"
    return TransferScore(metric, score(guess), score(guess[pairs]).value, permuted, chance)
