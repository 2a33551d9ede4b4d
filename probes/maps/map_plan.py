"""Choose the examples, targets and sites of a run's patch maps, before anything runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.config import TEXT_TOKENS, SweepConfig
from probes.evaluation.folds import Mask, encode
from probes.linear.registry import find_probe
from probes.probe_data import ProbeData
from tasks.errors import UserError
from tasks.example import Example

DEFAULT = 12  # pictures, enough for a page; at most one in four groups, so that most examples remain for the probes
_SEED = 2**17  # added to the seed, so that the draw differs from the draw of the folds


@dataclass(frozen=True)
class MapPlan:
    """The examples and targets of the maps, and the examples that probes are fitted on."""

    examples: tuple[int, ...]
    """Indices in the selection; empty for no maps."""
    targets: tuple[str, ...]
    """Names of class targets with every class among the training examples."""
    training: Mask
    """For each fitted example, True if it shares no group with any of ``examples``."""
    notes: tuple[str, ...] = ()
    """What is left out, and why; for the user."""


def plan_maps(selection: ProbeData, config: SweepConfig) -> MapPlan:
    """Draw the examples to map, at most one per group, and keep the targets that can be fitted without these groups.

    Groups without which a class would have no examples to fit on are drawn last.

    Raises:
        UserError: If there are too few groups for the maps, or the probe gives no probabilities.
    """
    asked, n = config.probing.maps, selection.n_fitted
    everyone = np.ones(n, dtype=bool)
    names = [target.name for target in selection.targets if target.kind == "class"]
    if asked == 0:
        return MapPlan((), (), everyone)
    if config.sites.tokens in TEXT_TOKENS:
        return MapPlan((), (), everyone, (f"no maps: tokens {config.sites.tokens!r} are not image tokens alone",))
    if not names:
        return MapPlan((), (), everyone, ("no maps: every target is continuous",))
    name, estimator = find_probe(config.probing.probe, "class")
    if not hasattr(estimator, "predict_proba"):
        if asked is not None:
            raise UserError(f"maps must be 0 for probe {name}, got {asked}. It gives no probabilities; use logistic.")
        return MapPlan((), (), everyone, (f"no maps: probe {name} gives no probabilities",))
    examples = [selection.examples[i] for i in range(n)]
    owner = np.array([example.group for example in examples])
    classes, codes = {}, {}
    for name in names:
        classes[name], codes[name] = encode(name, [example.labels[name] for example in examples], continuous=False)
    candidates = _candidates(examples, np.random.default_rng(config.seed + _SEED))
    spare = _spare(len(set(owner)), len(candidates))
    if asked is not None and asked > spare:
        raise UserError(
            f"maps must be at most {spare} for {len(set(owner))} groups of examples, got {asked}. Probes are fitted "
            "without the groups of the map examples, so half of the groups must remain."
        )
    wanted = min(DEFAULT, spare // 2) if asked is None else asked
    chosen = _choose(candidates, owner, codes, wanted, fill=asked is not None)
    if not chosen:
        return MapPlan((), (), everyone, ("no maps: too few groups to set some aside",))
    training = ~np.isin(owner, [owner[i] for i in chosen])
    lost = {name: np.setdiff1d(codes[name], codes[name][training]) for name in names}
    notes = tuple(
        f"no maps of target {name!r}: no {str(classes[name][gone[0]])!r} is left to fit on beside the map examples"
        for name, gone in lost.items()
        if len(gone)
    )
    kept = tuple(name for name in names if not len(lost[name]))
    return MapPlan(tuple(chosen) if kept else (), kept, training, notes)


def _candidates(examples: Sequence[Example], generator: np.random.Generator) -> list[int]:
    """For each group the index of one random example that has a picture; the indices are shuffled."""
    members: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if example.pictures:
            members.setdefault(example.group, []).append(index)
    one_each = [indices[int(generator.integers(len(indices)))] for indices in members.values()]
    return [one_each[i] for i in generator.permutation(len(one_each)).tolist()]


def _spare(n_groups: int, n_candidates: int) -> int:
    """The largest number of groups to leave out of fitting: at most half of them, with at least two left."""
    return max(0, min(n_candidates, n_groups // 2, n_groups - 2))


def _choose(
    candidates: Sequence[int],
    owner: npt.NDArray[Any],
    codes: Mapping[str, npt.NDArray[Any]],
    wanted: int,
    *,
    fill: bool,
) -> list[int]:
    """The first candidates whose groups can be left out without losing a class; with ``fill``, others follow."""
    left = {name: Counter(found.tolist()) for name, found in codes.items()}
    members: dict[str, list[int]] = {}
    for index, group in enumerate(owner.tolist()):
        members.setdefault(group, []).append(index)
    chosen: list[int] = []
    for candidate in candidates:
        if len(chosen) == wanted:
            break
        gone = {name: Counter(found[members[owner[candidate]]].tolist()) for name, found in codes.items()}
        if all(left[name][code] > n for name in codes for code, n in gone[name].items()):
            chosen.append(candidate)
            for name in codes:
                left[name] -= gone[name]
    if fill or not chosen:
        taken = set(chosen)
        chosen += [candidate for candidate in candidates if candidate not in taken][: wanted - len(chosen)]
    return chosen
