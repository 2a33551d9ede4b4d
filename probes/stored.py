"""The data of a sweep over stored activations: examples, labels and tokens of a capture, without a model.

config, data, stored = stored_data(SweepConfig(activations="runs/activations-smol-scenes"))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from models.sites import Site, Stack, depth, parse_sites
from probes.activations.examples import SCENES, load_examples, readable
from probes.activations.open import ActivationSet, open_activations
from probes.activations.store import groups_at
from probes.config import DataOptions, Pool, SweepConfig, Tokens
from probes.probe_data import SCENE_TARGETS, ProbeData, check_labels
from records.options import ModelOptions
from tasks.dataset import LazyExamples
from tasks.errors import UserError
from tasks.example import Example, Label, Target
from tasks.files import check_regular
from tasks.scenes.scene import SIZE

_CONTINUOUS_ABOVE = 20  # as for a file of examples: a column of floats with more distinct values is continuous
_PATHS = ("images", "captions")  # options of the data that a manifest holds as text


@dataclass(frozen=True)
class StoredCondition:
    """The stored activations of one condition, for the first ``n`` examples."""

    activations: ActivationSet
    condition: str
    n: int

    def read(self, site: Site, group: str) -> Float[Tensor, "example d"]:
        """The activations at a site, one row for each example."""
        return self.activations.tensor(site, group, self.condition)[: self.n]

    def width(self, site: Site, group: str) -> int:
        """The length of one activation."""
        return int(next(self.activations.shards(site, group, self.condition)).shape[1])


class _Layers(NamedTuple):
    """The number of blocks of a model that is not loaded."""

    id: str
    n_layers: int
    n_vision_layers: int


class Stored(NamedTuple):
    """A sweep over stored activations."""

    config: SweepConfig
    """The settings with those of the capture filled in."""
    data: ProbeData
    """Examples with labels, targets and token groups."""
    activations: ActivationSet
    sites: list[Site]
    """The stored sites that the settings choose."""
    depths: list[float]
    """Their relative depths."""
    notes: tuple[str, ...]
    """What is left out, and why."""


def stored_data(config: SweepConfig, *, default_targets: Sequence[str] = SCENE_TARGETS) -> Stored:
    """The data of ``probe-sweep --activations``; ``default_targets`` are those of scenes if none are given.

    Raises:
        UserError: If the run cannot be read, keeps every token, or lacks a site, token group, label or condition.
    """
    assert config.activations is not None
    stored = open_activations(config.activations)
    condition = config.condition or "image"
    if condition not in stored.conditions:
        raise UserError(
            f"condition must be one that {str(stored.folder)!r} has, got {condition!r}. "
            f"It has: {', '.join(stored.conditions)}."
        )
    if stored.pool == "none":
        raise UserError(
            f"activations must have one row for each example, got pool 'none' in {str(stored.folder)!r}. "
            "Capture with --pool mean, max or last."
        )
    captured = _captured_settings(stored)
    effective = replace(
        config,
        model=replace(captured.model, device=config.model.device),
        data=captured.data,
        sites=replace(config.sites, pool=_pool(stored), stored_as=captured.stored_as),
        batch_size=captured.batch_size,
    )
    table = stored.examples
    n_fitted = int(table["fitted"].sum()) if "fitted" in table else len(table)
    labels, targets = _labels(config, stored, captured, default_targets)
    examples, note = _examples(stored, captured, labels, condition)
    check_labels(examples, targets)
    rest = list(dict.fromkeys(table["split"].iloc[n_fitted:])) if "split" in table else []
    tokens = _tokens(config.sites.tokens, targets, stored, condition)
    sites, depths = _sites(config, stored, condition, tuple(tokens.values()))
    data = ProbeData(
        name=str(stored.manifest.get("data", {}).get("name", "stored")),
        digest=str(stored.manifest.get("data", {}).get("digest", "")),
        examples=examples,
        n_fitted=n_fitted,
        transfer=None if not rest else captured.data.transfer or str(rest[0]),
        targets=targets,
        tokens=tokens,
    )
    return Stored(effective, data, stored, sites, depths, (note,) if note else ())


class _Captured(NamedTuple):
    model: ModelOptions
    data: DataOptions
    stored_as: Any
    batch_size: int
    seed: int


def _captured_settings(stored: ActivationSet) -> _Captured:
    """The options of the run that stored the activations, read back from its manifest."""
    settings = dict(stored.manifest.get("settings", {}))

    def read(kind: type[Any], **names: str) -> Any:
        values = {}
        for field in fields(kind):
            name = names.get(field.name, field.name)
            if name in settings:
                value = settings[name]
                if field.name in _PATHS and isinstance(value, str):
                    value = Path(value)
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return kind(**values)

    model = read(ModelOptions, name="model")
    data = read(DataOptions, spec="data")
    numbers = int(settings.get("batch_size", 16)), int(settings.get("seed", 0))
    return _Captured(model, data, settings.get("store_dtype"), *numbers)


def _pool(stored: ActivationSet) -> Pool:
    pool: Any = stored.pool
    return pool  # type: ignore[no-any-return]


def _labels(
    config: SweepConfig, stored: ActivationSet, captured: _Captured, default_targets: Sequence[str]
) -> tuple[Mapping[str, Sequence[Label | None]], tuple[Target, ...]]:
    """The labels of every example by name, and the targets."""
    table = stored.examples
    labels: dict[str, Sequence[Label | None]] = {
        name.removeprefix("label_"): _plain(table[name]) for name in table.columns if name.startswith("label_")
    }
    entries = stored.manifest.get("data", {}).get("targets") or []
    known = {name: Target(name, scope, kind) for name, scope, kind in entries}
    for name in labels:
        known.setdefault(name, Target(name, kind=_kind(labels[name])))
    wanted = config.probing.targets
    if config.labels is not None:
        given = _read_labels(config.labels, table["id"].astype(str).tolist())
        if not wanted:
            raise UserError(
                f"target must be given at least once with labels {str(config.labels)!r}, got none. "
                f"The file has: {', '.join(given)}."
            )
        labels |= given
        known |= {name: Target(name, kind=_kind(values)) for name, values in given.items()}
    if not wanted and captured.data.spec == SCENES:
        wanted = tuple(name for name in default_targets if name in known)
    if not wanted:
        raise UserError(f"target must be given at least once, got none. The run has: {', '.join(known) or 'no label'}.")
    return labels, tuple(_target(text, known) for text in dict.fromkeys(wanted))


def _plain(column: "pd.Series") -> list[Label | None]:
    """The values as Python's own types; None for a missing one."""
    return [None if value is None or value is pd.NA or value != value else value for value in column.tolist()]


def _kind(values: Sequence[Label | None]) -> Literal["class", "continuous"]:
    floats = all(isinstance(value, float) for value in values if value is not None)
    return "continuous" if floats and len(set(values)) > _CONTINUOUS_ABOVE else "class"


def _target(text: str, known: Mapping[str, Target]) -> Target:
    """The target that ``text`` names, with a kind or scope after a colon."""
    name, _, override = (text, "", "") if text in known else text.rpartition(":")
    if name not in known:
        raise UserError(f"target must be one of {', '.join(known) or 'no labels'}, got {text!r}.")
    if override not in ("", "class", "continuous", "image", "object"):
        raise UserError(f"target must end in :class, :continuous, :image or :object, got {text!r}.")
    if override in ("image", "object"):
        return replace(known[name], scope=override)  # type: ignore[arg-type]
    return replace(known[name], kind=override) if override else known[name]  # type: ignore[arg-type]


def _read_labels(path: Path, ids: Sequence[str]) -> dict[str, list[Label | None]]:
    """The columns of a CSV or Parquet file by name, in the order of ``ids``.

    Raises:
        UserError: If the file cannot be read, has no column ``id``, repeats an id, or lacks an example.
    """
    try:
        check_regular(path)
        read = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"id": str})
    except (OSError, ValueError) as error:
        raise UserError(
            f"labels must be a CSV or Parquet file, got {str(path)!r} ({' '.join(str(error).split())})."
        ) from error
    if "id" not in read or len(read.columns) < 2:
        raise UserError(f"labels must have the column id and a column of labels, got {', '.join(read.columns)}.")
    read = read.assign(id=read["id"].astype(str))
    repeated = read["id"][read["id"].duplicated()]
    if len(repeated):
        raise UserError(f"labels must name each id once, got {repeated.iloc[0]!r} again in {str(path)!r}.")
    missing = [name for name in ids if name not in set(read["id"])]
    if missing:
        raise UserError(
            f"labels must cover every example, got none for {len(missing)} of {len(ids)}, first {missing[0]!r}. "
            "Add them, or capture fewer examples."
        )
    rows = read.set_index("id").loc[list(ids)]
    return {str(name): _plain(rows[name]) for name in rows.columns}


def _examples(
    stored: ActivationSet, captured: _Captured, labels: Mapping[str, Sequence[Label | None]], condition: str
) -> tuple[Sequence[Example], str]:
    """The examples with their labels; with their pictures if the data are still those that were captured."""
    table = stored.examples
    ids = table["id"].astype(str).tolist()
    source, note = None, ""
    if condition == "image":
        try:
            size = stored.manifest.get("data", {}).get("image_size")
            read = load_examples(captured.data, seed=captured.seed, size=int(size or SIZE))
            if read.digest == stored.manifest.get("data", {}).get("digest"):
                source = readable(read, captured.data, captioned="caption" in stored.conditions).examples
        except UserError:
            source = None
        if source is None:
            note = "raw pixels left out: the data that were captured are not there, or have changed"
    groups = table["group"].astype(str).tolist() if "group" in table else ids
    splits = table["split"].astype(str).tolist() if "split" in table else ["all"] * len(ids)

    def make(index: int) -> Example:
        own = {name: value for name, values in labels.items() if (value := values[index]) is not None}
        if source is not None:
            return replace(source[index], labels=own)
        return Example(
            id=ids[index], pictures=(), question="", answer="", group=groups[index], split=splits[index], labels=own
        )

    return LazyExamples(len(ids), make), note


def _tokens(asked: Tokens, targets: Sequence[Target], stored: ActivationSet, condition: str) -> dict[str, str]:
    """The token group of each target: the one asked for, or the one that holds what the label describes."""
    there = stored.tokens_of[condition]

    def group(target: Target) -> str:
        if asked != "auto":
            return asked
        first: tuple[str, ...] = ("object", "image") if target.scope == "object" else ("image",)
        order = (*(first if condition == "image" else ("caption",)), *there)
        return next(name for name in order if name in there)

    chosen = {target.name: group(target) for target in targets}
    for name in chosen.values():
        if name not in there:
            raise UserError(
                f"tokens must be stored in {str(stored.folder)!r} under the condition {condition!r}, got {name!r}. "
                f"It has: {', '.join(there)}."
            )
    return chosen


def _sites(
    config: SweepConfig, stored: ActivationSet, condition: str, groups: Sequence[str]
) -> tuple[list[Site], list[float]]:
    """The stored sites that the settings choose, with their depths."""
    root = stored.folder / stored.folders[condition]
    here = [Site.parse(name) for name in stored.sites if (root / name).is_dir()]
    here = [site for site in here if set(groups) <= set(groups_at(site, groups))]
    model: Stack = _stack(stored)
    chosen = here
    if config.sites.specs or config.sites.layers is not None:
        specs = config.sites.specs or ("resid_post",)
        chosen = parse_sites(specs, config.sites.layers, model)
        missing = [str(site) for site in chosen if site not in here]
        if missing:
            raise UserError(
                f"site must be stored in {str(stored.folder)!r} with tokens {', '.join(dict.fromkeys(groups))}, got "
                f"{missing[0]!r}. It has: {', '.join(map(str, here))}."
            )
    if not chosen:
        raise UserError(f"site must be stored with tokens {', '.join(groups)}, got none in {str(stored.folder)!r}.")
    return chosen, [depth(site, model) for site in chosen]


def _stack(stored: ActivationSet) -> _Layers:
    """The numbers of blocks: those in the manifest, or those that the stored sites show."""
    data = stored.manifest.get("data", {})
    sites = [Site.parse(name) for name in stored.sites]

    def deepest(part: str) -> int:
        return max((site.layer + 1 for site in sites if site.part == part and site.layer is not None), default=1)

    n, n_vision = data.get("n_layers"), data.get("n_vision_layers")
    return _Layers(stored.model, int(n or deepest("language_model")), int(n_vision or deepest("vision_tower")))
