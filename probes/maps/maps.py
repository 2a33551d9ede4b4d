"""Where in the picture a label can be read, layer by layer: pooled probes, applied to every image token by itself.

    maps = read_maps(Path("runs/smol"))      # None where a run has none
    maps.table, maps.examples[0].picture

A few examples are set aside with their groups (``plan_maps``); for each site and class target a probe is fitted on the
stored, pooled activations of the others, and applied to the patches of those few (``write_maps``).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.capture import capture
from models.hooks import CaptureError
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import to_png
from models.sites import Site
from probes.activations.store import ActivationStore
from probes.config import RUN, SweepConfig
from probes.evaluation.evaluate import STRENGTHS, choose_strengths
from probes.evaluation.folds import FoldPlan, InnerSplit, Mask, TargetPlan
from probes.evaluation.jobs import fit_logistic
from probes.evaluation.parallel import each_site, processes_for
from probes.evaluation.refit import fit_logistic_probes
from probes.linear.estimators import LogisticProbe, MassMeanProbe
from probes.linear.mlp import MLPProbe
from probes.linear.solver import rotate
from probes.maps.map_plan import MapPlan
from probes.probe_data import ProbeData
from records.manifest import read_manifest, write_atomically
from tasks.errors import UserError, user_errors
from tasks.example import Example, Label

TABLE, ABOUT, PICTURES = "maps.parquet", "maps.json", "maps"
COLUMNS = ("target", "site", "part", "name", "layer", "depth", "example", "row", "col", "p_true", "predicted")
_RANKING = 1e-1  # which of three strengths, a factor of ten apart, is best shows that far from the optimum

PatchProbe = LogisticProbe | MassMeanProbe | MLPProbe  # classes are codes: column c of predict_proba is class c


@dataclass(frozen=True)
class MapExample:
    """One example that was mapped.

    Args:
        id: The ``example`` of the table's rows.
        picture: The picture as the model sees it, a square PNG.
        question: The user's words.
        answer: The expected answer.
        labels: The example's own label by target.
        boxes: Named (left, top, right, bottom) as fractions of the square picture.
        focus: The box that object-level labels speak about, or None.
        classes: All labels by target.
    """

    id: str
    picture: Path
    question: str
    answer: str
    labels: Mapping[str, str]
    boxes: Mapping[str, tuple[float, float, float, float]]
    focus: str | None
    classes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Maps:
    """The maps of a run: the table, as ``docs/results.md`` describes it, and the examples in their order."""

    table: pd.DataFrame
    examples: tuple[MapExample, ...]


def read_maps(folder: Path) -> Maps | None:
    """The maps of a probe sweep; None where it made none.

    Raises:
        UserError: If the folder holds no run of ``probe-sweep``, or maps that are not whole.
    """
    if read_manifest(folder, RUN) is None:
        raise UserError(f"run must be a folder that {RUN.command} wrote, got {str(folder)!r}. Check the path.")
    if not (folder / TABLE).is_file():
        return None
    with user_errors(OSError, ValueError, KeyError):
        table = pd.read_parquet(folder / TABLE)
        examples = [
            MapExample(
                id=entry["example"],
                picture=folder / PICTURES / f"{entry['k']}.png",
                question=entry["question"],
                answer=entry["answer"],
                labels=entry["labels"],
                boxes={name: tuple(box) for name, box in entry["boxes"].items()},
                focus=entry["focus"],
                classes={name: tuple(classes) for name, classes in entry["classes"].items()},
            )
            for entry in json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        ]
    return Maps(table, tuple(examples))


def write_maps(
    llava: Llava,
    store: ActivationStore,
    sites: Sequence[Site],
    depths: Sequence[float],
    selection: ProbeData,
    folds: Mapping[str, FoldPlan],
    maps: MapPlan,
    config: SweepConfig,
    on_progress: Callable[[int], None],
) -> None:
    """Fits the probes, maps one example after the other, and writes pictures, ``maps.json``, then ``maps.parquet``.

    Memory holds the probes' coefficients and one example's image tokens at all sites.

    Args:
        llava: The model that filled the store.
        store: Pooled activations; those of the fitted examples come first.
        sites: What is stored.
        depths: For each site its relative depth.
        selection: Examples, targets, tokens.
        folds: Folds by token group.
        maps: From `plan_maps`; with examples.
        config: Gives probe, folds, preprocessing and seed.
        on_progress: Told the newly done of ``map_steps`` steps.

    Raises:
        UserError: If an activation is not finite, or the disk refuses.
    """
    plans = {group: plan.fitted_only() for group, plan in folds.items()}
    targets = {name: plans[selection.tokens[name]].targets[name] for name in maps.targets}
    probes: dict[Site, dict[str, PatchProbe]] = {site: {} for site in sites}
    for group, plan in plans.items():
        mine = [target for name, target in targets.items() if selection.tokens[name] == group]
        work = partial(_fit_site, group=group, store=store, targets=mine, maps=maps, plan=plan, config=config)
        widest = max(store.width(site, group) for site in sites)
        processes = processes_for(plan, widest, len(sites), config.model.device)
        for site, fitted in zip(sites, each_site(work, sites, processes=processes), strict=True):
            probes[site].update(fitted)
            on_progress(1)
    shape = (len(targets), len(sites), len(maps.examples), llava.grid[0] * llava.grid[1])
    p_true, predicted = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    about = []
    with user_errors(OSError):
        (config.folder / PICTURES).mkdir(exist_ok=True)
    for k, index in enumerate(maps.examples):
        example = selection.examples[index]
        with user_errors(CaptureError, ValueError):
            inputs = prepare(llava, [example], preprocess=config.data.preprocess)
            found = capture(llava, inputs, sites, tokens=_patches(llava, inputs), pool="none", examples=[example])
        for s, site in enumerate(sites):
            patches = found[site][0].flatten(1).to(torch.float32)
            for t, (name, target) in enumerate(targets.items()):
                probability = probes[site][name].predict_proba(patches)
                p_true[t, s, k] = probability[:, int(target.truth[index])]
                predicted[t, s, k] = probability.argmax(1)
        with user_errors(OSError):
            write_atomically(config.folder / PICTURES / f"{k}.png", _as_seen(llava, inputs))
        labels = {name: str(target.classes[target.truth[index]]) for name, target in targets.items()}
        about.append({"k": k, **_about(llava, inputs, example), "labels": labels, "classes": _classes(targets)})
        on_progress(1)
    ids = [selection.examples[index].id for index in maps.examples]
    table = _table(llava, sites, depths, ids, targets, p_true, predicted)
    with user_errors(OSError):
        write_atomically(config.folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        write_atomically(config.folder / TABLE, table.to_parquet(index=False))


def _fit_site(
    site: Site,
    *,
    group: str,
    store: ActivationStore,
    targets: Sequence[TargetPlan],
    maps: MapPlan,
    plan: FoldPlan,
    config: SweepConfig,
) -> dict[str, PatchProbe]:
    x = store.read(site, group)[: len(maps.training)].to(device=_device(config), dtype=torch.float32)
    return fit_probes(x, targets, maps.training, plan, config.probing.probe)


def map_steps(sites: Sequence[Site], selection: ProbeData, maps: MapPlan) -> int:
    """How many steps ``write_maps`` tells of."""
    return len(sites) * len(selection.groups) + len(maps.examples)


def fit_probes(
    x: Float[Tensor, "example d"], targets: Sequence[TargetPlan], training: Mask, plan: FoldPlan, probe: str
) -> dict[str, PatchProbe]:
    """For each class target a probe of class codes, fitted on the training examples alone.

    The strength of a logistic probe is the one that scores best over the plan's folds, cut down to the training
    examples: each is judged where it was not fitted, so that the map examples have no say in it either.

    Args:
        x: Pooled activations of one site.
        targets: Of the plan; every class occurs among the training examples.
        training: Which examples may be fitted on.
        plan: Gives folds, groups and seed.
        probe: ``"logistic"``, ``"mass-mean"`` or ``"mlp"``.
    """
    rows = torch.from_numpy(training).to(x.device)
    if probe == "mass-mean":
        return {t.name: MassMeanProbe().fit(x[rows], t.truth[training]) for t in targets}
    if probe == "mlp":
        groups = plan.groups[training]
        return {t.name: MLPProbe(seed=plan.seed).fit(x[rows], t.truth[training], groups=groups) for t in targets}
    if not targets:
        return {}
    basis = rotate(x, fitted=rows)
    path = sorted(STRENGTHS, reverse=True)
    judged = [replace(t, inner=_splits(t, training, plan.folds)) for t in targets]
    picks = choose_strengths(judged, path, 1, lambda jobs, levels: fit_logistic(basis, jobs, levels, _RANKING))
    probes: dict[str, PatchProbe] = {}
    probes.update(fit_logistic_probes(basis, targets, training, {name: pick[0] for name, pick in picks.items()}))
    return probes


def _splits(target: TargetPlan, training: Mask, folds: int) -> tuple[InnerSplit, ...]:
    """The target's folds among the training examples; those that the map examples leave empty drop out."""
    found = []
    for k in range(folds):
        inside, judge = training & (target.fold != k), training & (target.fold == k)
        if inside.any() and judge.any():
            found.append(InnerSplit(inside, ((0, judge),)))
    return tuple(found)


def _device(config: SweepConfig) -> str:
    return config.model.device if config.model.device.startswith("cuda") else "cpu"


def _patches(llava: Llava, inputs: Inputs) -> Bool[Tensor, "1 pos"]:
    """The patches of the first picture, without a class token."""
    mask = torch.zeros(inputs.input_ids.shape, dtype=torch.bool)
    first = inputs.layout[0].images[0].start + llava.n_class_tokens
    mask[0, first : first + llava.grid[0] * llava.grid[1]] = True
    return mask


def _as_seen(llava: Llava, inputs: Inputs) -> bytes:
    """The first picture after preprocessing, its colours restored, as PNG."""
    assert inputs.pixel_values is not None  # map examples have pictures
    return to_png(llava, inputs.pixel_values[inputs.image_of[0][0]])


def _about(llava: Llava, inputs: Inputs, example: Example) -> dict[str, Any]:
    """What ``maps.json`` says of an example besides its labels; of boxes the part that the model sees."""
    geometry, side = inputs.geometry[inputs.image_of[0][0]], llava.image_size
    boxes = {}
    for name, bounds in example.boxes.items():
        left, top, right, bottom = (min(1.0, max(0.0, edge / side)) for edge in geometry.to_model(bounds))
        if left < right and top < bottom:
            boxes[name] = [left, top, right, bottom]
    return {
        "example": example.id,
        "question": example.question,
        "answer": example.answer,
        "boxes": boxes,
        "focus": example.focus if example.focus in boxes else None,
    }


def _classes(targets: Mapping[str, TargetPlan]) -> dict[str, list[str]]:
    return {name: [str(label) for label in target.classes] for name, target in targets.items()}


def _table(
    llava: Llava,
    sites: Sequence[Site],
    depths: Sequence[float],
    ids: Sequence[str],
    targets: Mapping[str, TargetPlan],
    p_true: npt.NDArray[np.float32],
    predicted: npt.NDArray[np.int64],
) -> pd.DataFrame:
    """One row for each target, site, example and patch, in this order."""
    t, s, k, patch = (axis.ravel() for axis in np.indices(p_true.shape, dtype=np.int32))

    def of_site(values: Sequence[Label | None]) -> npt.NDArray[Any]:
        return np.array(values, dtype=object)[s]

    labels = [np.array(found, dtype=object) for found in _classes(targets).values()]
    columns = {
        "target": np.array(list(targets), dtype=object)[t],
        "site": of_site([str(site) for site in sites]),
        "part": of_site([site.part for site in sites]),
        "name": of_site([site.name for site in sites]),
        "layer": pd.array([site.layer for site in sites], dtype="Int64")[s],
        "depth": np.array(depths)[s],
        "example": np.array(ids, dtype=object)[k],
        "row": patch // llava.grid[1],
        "col": patch % llava.grid[1],
        "p_true": p_true.ravel(),
        "predicted": np.concatenate([found[codes.ravel()] for found, codes in zip(labels, predicted, strict=True)]),
    }
    return pd.DataFrame(columns)[list(COLUMNS)]
