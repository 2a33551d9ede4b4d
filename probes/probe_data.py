"""The data of a sweep: examples, targets, and the tokens that each target is read from.

Errors in the user's data are raised here, before a model is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from probes.config import DataOptions, Pool, SiteOptions, SweepConfig, Tokens
from probes.evaluation.folds import FoldPlan, plan_folds
from tasks.dataset import Dataset, join, pick
from tasks.errors import UserError, user_errors
from tasks.example import Example, Target
from tasks.readers.load_dataset import BadPicture, check_pictures, load_dataset
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.scene import SIZE

SCENES = "scenes"
SCENE_TARGETS = ("kind", "category", "colour", "place", "count")
SCENE_LIMIT = 200  # about four minutes for smol on two cores
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
    fitted, transfer, name = _load(config, SIZE)
    wanted = config.probing.targets or (SCENE_TARGETS if config.data.spec == SCENES else ())
    if not wanted:
        known = ", ".join(target.name for target in fitted.targets) or "no label column"
        raise UserError(f"target must be given at least once for your own data, got none. The file has: {known}.")
    targets = tuple(fitted.target(_plain_name(target, fitted)) for target in dict.fromkeys(wanted))
    examples, n_fitted, skipped = _readable(fitted, transfer, config.data)
    _check_labels(examples, targets)
    return ProbeData(
        name=name,
        digest=_digest(fitted, transfer),
        examples=examples,
        n_fitted=n_fitted,
        transfer=None if len(examples) == n_fitted else config.data.transfer or "unseen",
        targets=targets,
        tokens=_choose_tokens(config.sites, targets, examples),
        skipped=skipped,
    )


def at_size(selection: ProbeData, config: SweepConfig, size: int) -> ProbeData:
    """The same selection with scenes drawn ``size`` pixels wide, as the model takes them."""
    if config.data.spec != SCENES or size == SIZE:
        return selection
    fitted, transfer, _ = _load(config, size)
    return replace(selection, digest=_digest(fitted, transfer), examples=_both(fitted, transfer))


def fold_plans(data: ProbeData, config: SweepConfig) -> dict[str, FoldPlan]:
    """Draw folds, control labels and resamples for the targets of each token group.

    Raises:
        UserError: If a target has one class, or there are fewer groups than folds.
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
    return plans


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
    _check_labels(listed, wanted)
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


def _both(fitted: Dataset, transfer: Dataset | None) -> Sequence[Example]:
    return join(fitted.examples, () if transfer is None else transfer.examples)


def _digest(fitted: Dataset, transfer: Dataset | None) -> str:
    return fitted.digest if transfer is None else f"{fitted.digest}+{transfer.digest}"


def _load(config: SweepConfig, size: int) -> tuple[Dataset, Dataset | None, str]:
    """The examples to fit on, those to score only, and a name for both."""
    data, seed = config.data, config.seed
    for option, value in (("limit", data.limit), ("transfer-limit", data.transfer_limit)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be >= 1, got {value}. Leave it out for the default.")
    if data.spec == SCENES:
        n = data.limit or SCENE_LIMIT
        split, transfer = data.split or "test", data.transfer or "unseen"
        n_transfer = data.transfer_limit or max(2, n // 3)
        fitted = scenes_dataset(split=split, n=n, seed=seed, size=size)
        shared = set(split.split("+")) & set(transfer.split("+"))
        if transfer == "none" or transfer == split or (shared and data.transfer is None):
            return fitted, None, SCENES
        if shared:
            raise UserError(
                f"transfer must share no split with split {split!r}, got {transfer!r}. Name another one, or none."
            )
        return fitted, scenes_dataset(split=transfer, n=n_transfer, seed=seed, size=size), SCENES
    targets = config.probing.targets or None
    with user_errors(OSError):
        read = partial(load_dataset, data.spec, data.images, targets=targets, follow_links=data.follow_links)
        fitted = read(split=data.split, limit=data.limit)
        if data.transfer in (None, "none"):
            return fitted, None, Path(data.spec).name
        if data.split is None or data.split == data.transfer:
            raise UserError(
                f"split must be given, and another than transfer, got split {data.split!r} with transfer "
                f"{data.transfer!r}. Name the split that probes are fitted on."
            )
        other = read(split=data.transfer, limit=data.transfer_limit)
        return fitted, other, Path(data.spec).name


def _readable(
    fitted: Dataset, transfer: Dataset | None, data: DataOptions
) -> tuple[Sequence[Example], int, tuple[BadPicture, ...]]:
    """The examples with readable pictures, the number of them to fit on, and the skipped examples."""
    both, first = _both(fitted, transfer), len(fitted.examples)
    if data.spec == SCENES:
        return both, first, ()
    bad = [check_pictures(fitted), [] if transfer is None else check_pictures(transfer)]
    skipped = tuple(BadPicture(item.id, " ".join(item.reason.split())) for part in bad for item in part)
    if skipped and not data.skip_bad:
        more = f" {len(skipped) - 1} more examples have bad pictures." if len(skipped) > 1 else ""
        raise UserError(
            f"{skipped[0].reason} It belongs to example {skipped[0].id!r}.{more} --skip-bad leaves such examples out."
        )
    unreadable = [{item.id for item in part} for part in bad]
    kept = [i for i, example in enumerate(both) if example.id not in unreadable[i >= first]]
    n_fitted = sum(i < first for i in kept)
    if n_fitted == 0:
        raise UserError(f"some example must have readable pictures, got none of {len(both)}. Check the image folder.")
    return pick(both, kept), n_fitted, skipped


def _check_labels(examples: Sequence[Example], targets: Sequence[Target]) -> None:
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
