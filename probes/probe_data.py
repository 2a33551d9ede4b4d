"""The data of a sweep: examples, targets, and the tokens that each target is read from.

Errors in the user's data are raised here, before a model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from sklearn.utils.validation import has_fit_parameter

from probes.activations.examples import SCENES, load_examples, readable
from probes.config import Pool, SiteOptions, SweepConfig, Tokens
from probes.evaluation.folds import FoldPlan, plan_folds
from probes.linear.registry import find_probe
from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.example import Example, Target
from tasks.readers.load_dataset import BadPicture
from tasks.scenes.scene import SIZE

SCENE_TARGETS = ("kind", "category", "colour", "place", "count")
TYPE = "control_type"  # the label with the types of the control task; scenes have it


@dataclass(frozen=True)
class ProbeData:
    """The examples of a sweep. Those that probes are fitted on come first, then those that are only scored."""

    name: str
    """Name of the data in output."""
    digest: str
    examples: Sequence[Example]
    n_fitted: int
    """Number of examples to fit on; the others are only scored."""
    transfer: str | None
    """Name of the split of the other examples; None if there are none."""
    targets: tuple[Target, ...]
    tokens: Mapping[str, str]
    """The token group of each target."""
    skipped: tuple[BadPicture, ...] = ()
    """Examples left out because a picture cannot be read."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The token groups of all targets."""
        return tuple(dict.fromkeys(self.tokens[target.name] for target in self.targets))


def select(config: SweepConfig) -> ProbeData:
    """Read and check the examples, targets and token groups of the settings.

    Raises:
        UserError: If the data or a picture cannot be read, a target is unknown or lacks labels, or an example lacks the
            tokens.
    """
    read = load_examples(config.data, seed=config.seed, targets=config.probing.targets or None)
    fitted = read.fitted
    wanted = config.probing.targets or (SCENE_TARGETS if config.data.spec == SCENES else ())
    if not wanted:
        known = ", ".join(target.name for target in fitted.targets) or "no label column"
        raise UserError(f"target must be given at least once for your own data, got none. The file has: {known}.")
    targets = tuple(fitted.target(_plain_name(target, fitted)) for target in dict.fromkeys(wanted))
    found = readable(read, config.data)
    check_labels(found.examples, targets)
    return ProbeData(
        name=read.name,
        digest=read.digest,
        examples=found.examples,
        n_fitted=found.n_fitted,
        transfer=None if len(found.examples) == found.n_fitted else config.data.transfer or "unseen",
        targets=targets,
        tokens=_choose_tokens(config.sites, targets, found.examples),
        skipped=found.skipped,
    )


def at_size(selection: ProbeData, config: SweepConfig, size: int) -> ProbeData:
    """The same selection with scenes drawn ``size`` pixels wide, as the model takes them."""
    if config.data.spec != SCENES or size == SIZE:
        return selection
    read = load_examples(config.data, seed=config.seed, targets=config.probing.targets or None, size=size)
    return replace(selection, digest=read.digest, examples=read.both)


def fold_plans(data: ProbeData, config: SweepConfig) -> dict[str, FoldPlan]:
    """Draw folds, control labels and resamples for the targets of each token group.

    Raises:
        UserError: If a target has one class, there are fewer groups than folds, or the probe cannot be fitted to them.
    """
    n = len(data.examples)
    examples = [data.examples[i] for i in range(n)]
    typed = all(TYPE in example.labels for example in examples)
    plans = {}
    for group in data.groups:
        targets = [target for target in data.targets if data.tokens[target.name] == group]
        plans[group] = plan_folds(
            {target.name: [example.labels[target.name] for example in examples] for target in targets},
            [example.group for example in examples],
            folds=config.probing.folds,
            continuous=[target.name for target in targets if target.kind == "continuous"],
            transfer={data.transfer: np.arange(n) >= data.n_fitted} if data.transfer else None,
            types=[str(example.labels[TYPE]) for example in examples] if typed else None,
            controls=("shuffled", "control_task") if config.probing.controls else (),
            seed=config.seed,
        )
        _check_probe(plans[group], config)
    return plans


def _check_probe(plan: FoldPlan, config: SweepConfig) -> None:
    """Check that the probe can be fitted to the plan's targets and folds."""
    name = config.probing.probe
    for target in plan.targets.values():
        _, estimator = find_probe(name, target.kind)
        training = (plan.fitted & (target.fold != k) for k in range(plan.folds))
        if has_fit_parameter(estimator, "groups") and any(len(np.unique(plan.groups[rows])) < 2 for rows in training):
            raise UserError(
                f"probe {name} must have two groups in every training set, got one. Use more groups or folds."
            )


def data_of(examples: Sequence[Example] | Dataset, targets: Sequence[str], tokens: Tokens, pool: Pool) -> ProbeData:
    """The data of a sweep from examples in memory, checked.

    Raises:
        UserError: If a target is unknown or unlabelled somewhere, or an example lacks the tokens.
    """
    if isinstance(examples, Dataset):
        data, listed = examples, examples.examples
        wanted = tuple(data.target(name) for name in targets)
        name, digest = data.name, data.digest
    else:
        listed, name, digest = examples, "examples", "in memory"
        wanted = tuple(Target(target, kind=_kind(examples, target)) for target in targets)
    if not len(listed):
        raise UserError("examples must contain at least one example, got none.")
    check_labels(listed, wanted)
    chosen = _choose_tokens(SiteOptions(tokens=tokens, pool=pool), wanted, listed)
    return ProbeData(name, digest, listed, len(listed), None, wanted, chosen)


def _kind(examples: Sequence[Example], target: str) -> Literal["class", "continuous"]:
    numbers = all(isinstance(example.labels.get(target), float) for example in examples)
    return "continuous" if numbers else "class"


def _plain_name(target: str, data: Dataset) -> str:
    """``target`` without a suffix for its kind, such as ``:continuous`` in ``age:continuous``."""
    if data.name.startswith(SCENES) or target in {known.name for known in data.targets}:
        return target
    return target.rpartition(":")[0] or target


def check_labels(examples: Sequence[Example], targets: Sequence[Target]) -> None:
    """Check that every example has a label of every target."""
    for example in examples:
        for target in targets:
            if example.labels.get(target.name) is None:
                raise UserError(
                    f"target {target.name!r} must have a label in every example, got none in {example.id!r}. "
                    "Drop the rows without one."
                )


def _choose_tokens(sites: SiteOptions, targets: Sequence[Target], examples: Sequence[Example]) -> dict[str, str]:
    """Token group by target; ``auto`` takes the focus box for object-level targets if all examples have one."""
    asked = sites.tokens
    if asked == "caption":
        raise UserError(
            "tokens 'caption' must be read from stored captions, got a model to run. Use capture-activations "
            "--condition caption, then --activations with --condition caption."
        )
    focused = all(example.focus is not None and example.focus in example.boxes for example in examples)
    if not focused and (asked == "object" or sites.pool == "box"):
        example = next(e for e in examples if e.focus is None or e.focus not in e.boxes)
        what, instead = ("tokens 'object'", "--tokens image") if asked == "object" else ("pool 'box'", "--pool mean")
        raise UserError(f"{what} must have a focus box in every example, got none in {example.id!r}. Use {instead}.")
    if sites.pool == "box" and asked in ("question", "last"):
        raise UserError(
            f"pool must be mean, max or none for tokens {asked!r}, got 'box'. A box holds patches, not words."
        )
    if asked in ("auto", "object", "image"):
        blind = next((example for example in examples if not example.pictures), None)
        if blind is not None:
            raise UserError(
                f"tokens {asked!r} must have a picture in every example, got none in {blind.id!r}. Use --tokens last."
            )
    if asked != "auto":
        return {target.name: asked for target in targets}
    return {target.name: "object" if target.scope == "object" and focused else "image" for target in targets}
