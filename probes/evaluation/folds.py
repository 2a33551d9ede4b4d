"""Folds, control labels and permutations, drawn once and shared by every site of a sweep.

plan = plan_folds({"colour": colours, "count": counts}, groups, folds=5, seed=0)
for site in sites:
    evaluate(x[site], plan)
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from probes.evaluation.controls import control_labels
from records.resampling import Codes, draw_permutations, shuffle_over_groups
from tasks.errors import UserError

Mask = npt.NDArray[np.bool_]
Control = Literal["shuffled", "control_task"]
RING = 4  # from this many folds on, pairs of folds serve as inner folds


@dataclass(frozen=True)
class InnerSplit:
    """The mask of the examples to fit on, and the masks of those that score the strength, with their outer folds."""

    train: Mask
    judges: tuple[tuple[int, Mask], ...]


@dataclass(frozen=True)
class TargetPlan:
    """One target, encoded, with its folds."""

    name: str
    """The target."""
    kind: Literal["class", "continuous"]
    """Kind of the target."""
    classes: npt.NDArray[np.generic]
    """The labels, sorted; a class code is an index into them. Empty for continuous targets."""
    truth: npt.NDArray[np.generic]
    """Class codes, or values as float64; one per example."""
    controls: Mapping[str, npt.NDArray[np.generic]]
    """The same for each control."""
    fold: Codes
    """The fold whose probe predicts the example; it is fitted on other groups."""
    inner: tuple[InnerSplit, ...]
    """The splits that choose the strength."""


@dataclass(frozen=True)
class FoldPlan:
    """All random choices of a cross-validation."""

    targets: Mapping[str, TargetPlan]
    """By name."""
    groups: Codes
    """Group code of each example."""
    fitted: Mask
    """True for examples of the cross-validation, False for those of transfer sets."""
    transfer: Mapping[str, Mask]
    """Sets of examples that no probe is fitted on, by name."""
    permutations: Codes
    """Shuffles of the fitted examples."""
    folds: int
    """Number of outer folds."""
    seed: int
    """Seed of all random choices."""

    def fitted_only(self) -> "FoldPlan":
        """The same folds over the fitted examples, without transfer sets, controls and permutations."""
        keep = self.fitted
        targets = {}
        for name, target in self.targets.items():
            truth, classes = target.truth[keep], target.classes
            if target.kind == "class":  # codes count the classes that occur
                present, truth = np.unique(truth, return_inverse=True)
                classes = classes[present]
            inner = tuple(
                InnerSplit(split.train[keep], tuple((k, judge[keep]) for k, judge in split.judges))
                for split in target.inner
            )
            targets[name] = replace(
                target, classes=classes, truth=truth, controls={}, fold=target.fold[keep], inner=inner
            )
        return replace(
            self,
            targets=targets,
            groups=np.unique(self.groups[keep], return_inverse=True)[1],  # counted from 0, as in a plan of their own
            fitted=np.ones(int(keep.sum()), dtype=bool),
            transfer={},
            permutations=self.permutations[:0],
        )


def plan_folds(
    y_by_target: Mapping[str, npt.ArrayLike],
    groups: npt.ArrayLike,
    *,
    folds: int = 5,
    continuous: Collection[str] = (),
    transfer: Mapping[str, npt.ArrayLike] | None = None,
    types: npt.ArrayLike | None = None,
    controls: Sequence[Control] = ("shuffled", "control_task"),
    n_permutations: int = 1000,
    seed: int = 0,
) -> FoldPlan:
    """Grouped, stratified folds for each target, with its control labels and permutations.

    Strengths are chosen inside the training folds. With four folds or more, the probe fitted without folds k and k + 1
    is scored on k + 1 for outer fold k and on k for outer fold k + 1. This needs half the fits of separate inner folds
    and fits on more data. With fewer folds, each training set gets inner folds.

    Args:
        y_by_target: Labels of every example, transfer examples included, by target.
        groups: Examples of one group are never on both sides of a split.
        folds: Number of outer folds, at least 2.
        continuous: Targets that are real numbers; all others are classes.
        transfer: Masks of examples that are only predicted, never fitted. The probe of one fold predicts such an
            example: that of the fold without its group, or any one if its group is not fitted.
        types: Type of each example for the control task, such as a drawing or a word: the finest that recurs across
            groups. None takes the group; then types do not recur across folds and the control task scores at chance.
        controls: Controls to prepare.
        n_permutations: Number of shuffles of the labels, for p-values.
        seed: Seed of all random choices.

    Raises:
        UserError: If there are fewer groups than folds, a target has one class, missing or non-finite labels, a wrong
            length, or a training set would have one class.

    Example:
        >>> plan = plan_folds({"kind": ["cat", "dog"] * 4}, groups=[0, 0, 1, 1, 2, 2, 3, 3], folds=2)
        >>> sorted(zip(plan.groups.tolist(), plan.targets["kind"].fold.tolist()))[:4]
        [(0, 0), (0, 0), (1, 0), (1, 0)]
    """
    group = _codes(groups, "groups")
    n = len(group)
    sets = {name: _mask(mask, n, name) for name, mask in (transfer or {}).items()}
    fitted = ~np.logical_or.reduce(list(sets.values())) if sets else np.ones(n, dtype=bool)
    n_groups = len(np.unique(group[fitted]))
    if folds < 2:
        raise UserError(f"folds must be at least 2, got {folds}. One fold has nothing to be tested on.")
    if n_groups < folds:
        raise UserError(f"groups must be at least as many as folds={folds}, got {n_groups}. Use fewer folds.")
    if not y_by_target:
        raise UserError("y_by_target must name a target, got none. Pass labels by target name.")
    grain = group if types is None else _codes(types, "types")
    targets = {}
    for number, (name, labels) in enumerate(y_by_target.items()):
        # With one generator for each target, adding a target does not change the folds of the others.
        generator = np.random.default_rng([seed, number])
        targets[name] = _plan_target(name, labels, group, grain, fitted, folds, name in continuous, controls, generator)
    generator = np.random.default_rng([seed, 1 << 20])
    permutations = draw_permutations(group[fitted], draws=n_permutations, generator=generator)
    return FoldPlan(targets, group, fitted, sets, permutations, folds, seed)


def _codes(values: npt.ArrayLike, argument: str) -> Codes:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"{argument} must be a non-empty list with one entry per example, got shape {array.shape}.")
    code: Codes = np.unique(array, return_inverse=True)[1].astype(np.int64)
    return code


def _mask(mask: npt.ArrayLike, n: int, name: str) -> Mask:
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (n,) or not array.any():
        raise UserError(
            f"transfer {name!r} must be a boolean mask over {n} examples with some True, got "
            f"{array.dtype} {array.shape} with {int(array.astype(bool).sum())} set. Leave empty sets out."
        )
    return array


def _plan_target(
    name: str,
    labels: npt.ArrayLike,
    group: Codes,
    types: Codes,
    fitted: Mask,
    folds: int,
    continuous: bool,
    controls: Sequence[Control],
    generator: np.random.Generator,
) -> TargetPlan:
    n = len(group)
    classes, truth = encode(name, labels, continuous)
    for what, length in (("labels", len(truth)), ("types", len(types))):
        if length != n:
            raise UserError(f"{what} of target {name!r} must have one entry per example ({n}), got {length}.")
    inside = truth[fitted]
    if len(np.unique(inside)) < 2:
        raise UserError(
            f"target {name!r} must have at least two classes among the fitted examples, got one. "
            "Use more examples or another target."
        )
    seed = int(generator.integers(2**31))
    fold = np.full(n, -1, dtype=np.int64)
    fold[fitted] = assign_folds(name, inside, group[fitted], folds, continuous, seed)
    fold_of_group = np.full(group.max() + 1, -1, dtype=np.int64)
    fold_of_group[group[fitted]] = fold[fitted]
    fresh = fold_of_group < 0
    fold_of_group[fresh] = generator.permutation(int(fresh.sum())) % folds
    fold[~fitted] = fold_of_group[group[~fitted]]
    for k in range(folds):
        if len(np.unique(truth[fitted & (fold != k)])) < 2:
            raise UserError(
                f"target {name!r} must have two classes in every training set, got one without fold {k}. "
                f"Use fewer folds than {folds} or more examples."
            )
    made: dict[str, npt.NDArray[np.generic]] = {}
    if "shuffled" in controls:
        # Transfer examples keep their labels, because they are never scored against a control.
        shuffled = truth.copy()
        shuffled[fitted] = inside[shuffle_over_groups(group[fitted], generator=generator)]
        made["shuffled"] = shuffled
    if "control_task" in controls:
        made["control_task"] = control_labels(types, inside, generator=generator)
    inner = _inner_splits(name, truth, group, fitted, fold, folds, continuous, seed)
    return TargetPlan(name, "continuous" if continuous else "class", classes, truth, made, fold, inner)


def encode(
    name: str, labels: npt.ArrayLike, continuous: bool
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Sorted classes and class codes, or no classes and float64 values."""
    array = np.asarray(labels)
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"labels of target {name!r} must be a non-empty list, got shape {array.shape}.")
    missing = array.dtype == object and any(label is None for label in array)
    if continuous and not missing:
        array = array.astype(np.float64)
    if missing or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise UserError(f"labels of target {name!r} must be present and finite, got gaps. Drop those examples.")
    if continuous:
        return np.empty(0), array
    classes, code = np.unique(array, return_inverse=True)
    return classes, code.astype(np.int64)


def assign_folds(
    name: str, truth: npt.NDArray[np.generic], group: Codes, folds: int, continuous: bool, seed: int
) -> Codes:
    """Fold of each example. Groups are not split, and classes are balanced as far as the groups allow."""
    fold = np.empty(len(truth), dtype=np.int64)
    if continuous:
        splits = GroupKFold(folds, shuffle=True, random_state=seed).split(truth, groups=group)
    else:
        if np.bincount(truth.astype(np.int64)).max() < folds:
            raise UserError(
                f"target {name!r} must have a class with at least folds={folds} examples, got none. "
                "Use fewer folds or more examples; if the values are numbers to predict, add :continuous to the target."
            )
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(truth, truth, group)
    with warnings.catch_warnings():
        # Some folds lack a class with fewer examples than folds; balanced accuracy over all examples is still right.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, test) in enumerate(splits):
            fold[test] = number
    return fold


def _inner_splits(
    name: str,
    truth: npt.NDArray[np.generic],
    group: Codes,
    fitted: Mask,
    fold: Codes,
    folds: int,
    continuous: bool,
    seed: int,
) -> tuple[InnerSplit, ...]:
    if folds >= RING:
        splits = []
        for k in range(folds):
            after = (k + 1) % folds
            train = fitted & (fold != k) & (fold != after)
            splits.append(InnerSplit(train, ((k, fitted & (fold == after)), (after, fitted & (fold == k)))))
        return _usable(splits, truth, continuous)
    splits = []
    for k in range(folds):
        outer = np.flatnonzero(fitted & (fold != k))
        most = len(outer) if continuous else int(np.bincount(truth[outer].astype(np.int64)).max())
        count = min(3, len(np.unique(group[outer])), most)
        if count < 2:
            continue
        inner = assign_folds(name, truth[outer], group[outer], count, continuous, seed + 1)
        for j in range(count):
            train, judge = np.zeros(len(fold), dtype=bool), np.zeros(len(fold), dtype=bool)
            train[outer[inner != j]], judge[outer[inner == j]] = True, True
            splits.append(InnerSplit(train, ((k, judge),)))
    return _usable(splits, truth, continuous)


def _usable(splits: Sequence[InnerSplit], truth: npt.NDArray[np.generic], continuous: bool) -> tuple[InnerSplit, ...]:
    """The splits with two classes to fit; folds without a split take the middle strength.

    Those of numbers do not depend on the labels, so that shuffled labels have the same ones.
    """
    return tuple(s for s in splits if s.train.any() and (continuous or len(np.unique(truth[s.train])) > 1))
