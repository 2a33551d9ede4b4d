"""What is compared: the two sides of every comparison, read from stored activations layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float32
from torch import Tensor

from models.layer_ranges import parse_layers
from models.sites import Site
from probes.activations.open import ActivationSet, open_activations
from probes.geometry.neighbours import as_points, first_of_equals
from probes.geometry.sweep.config import GeometryConfig
from tasks.errors import UserError
from tasks.files import real_path

SAMPLE = "sample:"
IMAGE_CAPTION, RUNS = "image-caption", "runs"
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Side:
    """A representation of the examples: a run, a condition and a token group, at every layer."""

    stored: ActivationSet = field(repr=False)
    condition: str
    tokens: str
    """A token group, or ``sample:`` and one."""
    sites: dict[int, str] = field(repr=False)
    """The full names of the sites by layer."""
    seed: int = 0

    @property
    def group(self) -> str:
        """The stored token group."""
        return self.tokens.removeprefix(SAMPLE)

    @property
    def label(self) -> str:
        """Condition and tokens, for people."""
        return f"{self.condition}/{self.tokens}"

    def read(self, layer: int, rows: Rows) -> Float32[np.ndarray, "row d_model"]:
        """The representation of some examples, in ascending order, at a layer; raises as ``ActivationSet.tensor``."""
        site = self.sites[layer]
        if self.stored.pool != "none":
            return self._read_pooled(site, rows)
        place = np.array(self.stored.token_rows(self.group, self.condition)["example"])
        counts = np.bincount(place, minlength=len(self.stored))
        if not counts[rows].all():
            name = self.stored.examples["id"].iloc[int(rows[np.argmin(counts[rows])])]
            raise UserError(f"tokens must be in every example, got none of {self.group!r} in example {name!r}.")
        starts = np.cumsum(counts) - counts
        drawn = starts + (np.random.default_rng(self.seed).random(len(counts)) * counts).astype(np.int64)
        found: list[Tensor] = []
        offset = 0
        for shard in self.stored.shards(site, self.group, self.condition):
            here = torch.arange(offset, offset + len(shard))
            own = torch.from_numpy(place)[here]
            if self.tokens.startswith(SAMPLE):
                weights = (torch.from_numpy(drawn)[own] == here).float()
            else:
                weights = 1 / torch.from_numpy(counts)[own].float()
            first = int(own[0])
            sums = torch.zeros(int(own[-1]) - first + 1, shard.shape[1])
            found.append(sums.index_add_(0, own - first, shard.float() * weights[:, None]))
            offset += len(shard)
        return np.asarray(torch.cat(found).numpy()[rows], dtype=np.float32)

    def _read_pooled(self, site: str, rows: Rows) -> Float32[np.ndarray, "row d_model"]:
        """The rows alone, in ascending order; a run may hold many more than are compared."""
        found: list[Tensor] = []
        offset = 0
        for shard in self.stored.shards(site, self.group, self.condition):
            first, last = np.searchsorted(rows, [offset, offset + len(shard)])
            found.append(shard[torch.from_numpy(rows[first:last] - offset)].float())
            offset += len(shard)
        return np.asarray(torch.cat(found).numpy(), dtype=np.float32)


class LayerPair(NamedTuple):
    """The layers that a curve compares."""

    a: int
    b: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides, and the same two of a randomly initialised model."""

    kind: str
    a: Side
    b: Side
    random: tuple[Side, Side] | None

    @property
    def name(self) -> str:
        """For people and for the column ``comparison``."""
        return f"{self.a.label} - {self.b.label}"

    @property
    def pairs(self) -> list[LayerPair]:
        """The layers of the curves: equal layers or, if the depths differ, layers of equal relative depth."""
        a, b = sorted(self.a.sites), sorted(self.b.sites)
        if a == b:
            return [LayerPair(layer, layer) for layer in a]
        place = np.linspace(0, len(b) - 1, len(a)).round().astype(int)
        return [LayerPair(layer, b[index]) for layer, index in zip(a, place, strict=True)]


def open_comparisons(config: GeometryConfig) -> list[Comparison]:
    """The comparisons of the settings.

    Raises:
        UserError: If a run cannot be read, lacks a site, condition or token group, or holds other examples.
    """
    if config.activations is None:
        raise UserError("activations must be a run directory, got none. Run capture-activations first, or name one.")
    run = open_activations(config.activations)
    against = open_activations(config.against) if config.against else None
    random = open_activations(config.random) if config.random else _own_random(run)
    for name, other in (("against", against), ("random", random)):
        if other is not None:
            _check_same(run, other, name)
    found = []
    for (condition_a, group_a), (condition_b, group_b) in _groups(config, run, against):
        a = _side(config, run, condition_a, group_a)
        b = _side(config, against or run, condition_b, group_b)
        control = None
        if random is not None:
            control = (
                _side(config, random if against is None else run, condition_a, group_a),
                _side(config, random, condition_b, group_b),
            )
            if set(control[1].sites) != set(b.sites if against is None else a.sites):
                raise UserError(
                    f"random must be a model with the layers of {run.model}, got {len(control[1].sites)} layers for "
                    f"{len(a.sites)} in {str(random.folder)!r}."
                )
        found.append(Comparison(IMAGE_CAPTION if against is None else RUNS, a, b, control))
    return found


def _own_random(run: ActivationSet) -> ActivationSet | None:
    """The random model's activations of the run, if it has all examples, conditions and token groups."""
    found = run.random_init
    if found is None or len(found) != len(run):
        return None
    return found if dict(found.tokens_of) == dict(run.tokens_of) else None


def _check_same(run: ActivationSet, other: ActivationSet, name: str) -> None:
    """Raise ``UserError`` unless both hold the same examples in the same order."""
    ids = [list(stored.examples["id"].astype(str)) for stored in (run, other)]
    digests = [stored.manifest.get("data", {}).get("digest") for stored in (run, other)]
    if ids[0] != ids[1]:
        what = f"{len(ids[1])} for {len(ids[0])}" if len(ids[0]) != len(ids[1]) else "other ids"
        raise UserError(
            f"{name} must hold the examples of activations in the same order, got {what} in {str(other.folder)!r}. "
            "Capture both from the same data with the same limit."
        )
    if None not in digests and digests[0] != digests[1]:
        raise UserError(
            f"{name} must hold the data of activations, got other pictures or questions under the same ids in "
            f"{str(other.folder)!r}. Capture both from the same data."
        )


Group = tuple[str, str]  # condition and token group


def _groups(config: GeometryConfig, run: ActivationSet, against: ActivationSet | None) -> list[tuple[Group, Group]]:
    """The condition and token group of both sides of every comparison."""
    if against is None:
        missing = [condition for condition in ("image", "caption") if condition not in run.conditions]
        if missing:
            raise UserError(
                f"activations must have the conditions image and caption, got no {missing[0]} in "
                f"{str(run.folder)!r}. Capture with --condition both, or give --against."
            )
        asked = [tuple(text.partition("=")[::2]) for text in config.tokens]
        wanted = [(left, right or left) for left, right in asked]
        if not wanted:
            wanted = [(group, group) for group in run.tokens_of["image"] if group in run.tokens_of["caption"]]
            if "image" in run.tokens_of["image"] and "caption" in run.tokens_of["caption"]:
                wanted.append(("image", "caption"))
        if not wanted:
            raise UserError(
                "tokens must be stored in both conditions, got no common group of "
                f"{', '.join(run.tokens_of['image'])} and {', '.join(run.tokens_of['caption'])}. Name a pair: A=B."
            )
        return [(("image", left), ("caption", right)) for left, right in wanted]
    both = [condition for condition in run.conditions if condition in against.conditions]
    groups = [
        (condition, group)
        for condition in both for group in config.tokens or run.tokens_of[condition]
        if config.tokens or group in against.tokens_of[condition]
    ]  # fmt: skip
    if any("=" in group for _, group in groups):
        raise UserError("tokens must be one group with --against, got A=B. Both runs are read at the same tokens.")
    stored = [
        (condition, group) for condition, group in groups
        if group.removeprefix(SAMPLE) in run.tokens_of[condition]
        and group.removeprefix(SAMPLE) in against.tokens_of[condition]
    ]  # fmt: skip
    if not stored or {group for _, group in stored} != {group for _, group in groups}:
        held = ", ".join(f"{condition}/{group}" for condition in both for group in run.tokens_of[condition])
        raise UserError(
            f"tokens must be stored in both runs, got {', '.join(config.tokens) or 'none'}. It has: {held}."
        )
    return [(pair, pair) for pair in stored]


def _side(config: GeometryConfig, stored: ActivationSet, condition: str, tokens: str) -> Side:
    """One side, with its sites checked."""
    group = tokens.removeprefix(SAMPLE)
    if group not in stored.tokens_of.get(condition, ()):
        raise UserError(
            f"tokens must be a group of condition {condition} in {str(stored.folder)!r}, got {group!r}. It has: "
            f"{', '.join(stored.tokens_of.get(condition, ())) or 'none'}."
        )
    if tokens.startswith(SAMPLE) and stored.pool != "none":
        raise UserError(
            f"tokens must be captured with --pool none for {tokens!r}, got pool {stored.pool!r} in "
            f"{str(stored.folder)!r}."
        )
    sites = {}
    for text in stored.sites:
        site = Site.parse(text)
        here = (stored.folder / stored.folders[condition] / text).is_dir()
        if here and site.part == config.part and site.name == config.site and site.layer is not None:
            sites[site.layer] = text
    if not sites:
        raise UserError(
            f"site must be stored for the blocks of the {config.part.replace('_', ' ')}, got {config.site!r}, which "
            f"condition {condition} of {str(stored.folder)!r} lacks. The run has: "
            f"{', '.join(stored.sites[:3])}{', ...' if stored.sites[3:] else ''}."
        )
    if config.layers != "all":
        wanted = parse_layers(config.layers, max(sites) + 1, where=f"the run {str(stored.folder)!r}")
        absent = [layer for layer in wanted if layer not in sites]
        if absent:
            raise UserError(f"layer must be stored, got {absent[0]}, which {str(stored.folder)!r} lacks.")
        sites = {layer: sites[layer] for layer in wanted}
    return Side(stored, condition, tokens, dict(sorted(sites.items())), config.seed)


class ChosenRows(NamedTuple):
    """The examples of a comparison."""

    rows: Rows
    n_grouped: int
    """Left out because another example of their group is in."""
    n_limited: int
    """Left out by the limit."""
    n_duplicates: int
    """Left out because their activation equals that of an earlier one at some layer on either side."""


def choose_rows(comparison: Comparison, config: GeometryConfig, *, least: int) -> ChosenRows:
    """The examples to compare: one of each group, at most ``limit``, different at every layer of every side.

    Raises:
        UserError: If an activation is not finite, or fewer than ``least`` examples are left.
    """
    examples = comparison.a.stored.examples
    groups = examples["group"] if "group" in examples else examples["id"]
    single = np.flatnonzero(~groups.astype(str).duplicated().to_numpy())
    rows = single
    if len(single) > config.limit:
        rows = np.sort(np.random.default_rng(config.seed).permutation(single)[: config.limit])
    if len(rows) < least:
        raise UserError(
            f"examples must be at least {least} of different groups for k = {config.k} and rank "
            f"{','.join(map(str, config.rank))} in halves of them, got {len(rows)}. Capture more, or set --k, --rank."
        )
    kept = np.ones(len(rows), dtype=bool)
    worst, fewest = "", len(rows)
    for side in (comparison.a, comparison.b, *(comparison.random or ())):
        for layer in side.sites:
            what = f"{side.label} activations of {side.stored.model} at layer {layer}"
            here = first_of_equals(as_points(side.read(layer, rows), what)).numpy()
            if here.sum() < fewest:
                worst, fewest = what, int(here.sum())
            kept &= here
    if kept.sum() < least:
        raise UserError(
            f"examples must be at least {least} without duplicates, got {int(kept.sum())} of {len(rows)}; {worst} have "
            f"{fewest} different rows. Leave that layer out, or capture in float32."
        )
    return ChosenRows(rows[kept], len(examples) - len(single), len(single) - len(rows), int((~kept).sum()))


def label_codes(comparison: Comparison, targets: Sequence[str], rows: Rows) -> dict[str, Rows]:
    """Class numbers of the examples by target.

    Raises:
        UserError: If the examples lack a label, or have one class only.
    """
    found = {}
    examples = comparison.a.stored.examples.iloc[rows]
    for target in targets:
        column = next((name for name in (f"label_{target}", target) if name in examples), None)
        if column is None or examples[column].isna().any():
            known = ", ".join(name.removeprefix("label_") for name in map(str, examples) if name.startswith("label_"))
            raise UserError(
                f"target must be a label of every example, got {target!r}. The run has: {known or 'no labels'}."
            )
        codes, classes = pd.factorize(examples[column].astype(str))
        if len(classes) < 2:
            raise UserError(f"target must have at least two classes, got {len(classes)} of {target!r}.")
        found[target] = codes.astype(np.int64)
    return found


def check_runs_apart(config: GeometryConfig) -> None:
    """Raise ``UserError`` if ``out`` is one of the runs that are read."""
    for name in ("activations", "against", "random"):
        given: Path | None = getattr(config, name)
        if given is not None and real_path(given) == real_path(config.folder):
            raise UserError(f"out must be another folder than {name}, got {str(given)!r}.")
