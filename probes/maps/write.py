"""Write the patch maps of a run: probes fitted on pooled activations, applied to every patch of a few other examples.

write_maps(llava, store, sites, depths, selection, folds, plan_maps(selection, config), config, on_progress)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from models.capture import capture
from models.hooks import CaptureError
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import to_png
from models.sites import Site
from probes.activations.store import ActivationStore
from probes.config import SweepConfig
from probes.evaluation.class_rule import class_counts, decide_class
from probes.evaluation.folds import FoldPlan, TargetPlan
from probes.evaluation.parallel import each_site, processes_for
from probes.maps.files import ABOUT, COLUMNS, PICTURES, TABLE
from probes.maps.map_plan import MapPlan
from probes.maps.patch_probes import fit_patch_probes
from probes.probe_data import ProbeData
from records.manifest import commit
from tasks.errors import user_errors
from tasks.example import Example, Label


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
    """Fit the probes, map the examples in turn, and write pictures, ``maps.json``, then ``maps.parquet``.

    The arguments are those of `probes.fit_sites.fit_sites`; ``maps`` has examples, and ``llava`` filled the store.
    ``on_progress`` is called with 1 for each token group of a site, and for each example.
    The probes' coefficients and one example's image tokens at all sites are in memory at a time.

    Raises:
        UserError: If an activation is not finite, or a file cannot be written.
    """
    plans = {group: plan.fitted_only() for group, plan in folds.items()}
    targets = {name: plans[selection.tokens[name]].targets[name] for name in maps.targets}
    classes = {name: [str(label) for label in target.classes] for name, target in targets.items()}
    counts = {name: class_counts(t.truth[maps.training], len(t.classes)) for name, t in targets.items()}
    probes: dict[Site, dict[str, Any]] = {site: {} for site in sites}
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
        with user_errors(CaptureError):
            inputs = prepare(llava, [example], preprocess=config.data.preprocess)
            found = capture(
                llava, inputs, sites, tokens=patches_of_first(llava, inputs), pool="none", examples=[example]
            )
        for s, site in enumerate(sites):
            patches = found[site][0].flatten(1).to(torch.float32)
            for t, (name, target) in enumerate(targets.items()):
                probability = probes[site][name].predict_proba(patches)
                p_true[t, s, k] = probability[:, int(target.truth[index])]
                predicted[t, s, k] = decide_class(probability.T, counts[name])
        assert inputs.pixel_values is not None  # map examples have pictures
        with user_errors(OSError):
            picture = to_png(llava, inputs.pixel_values[inputs.image_of[0][0]])
            commit(config.folder / PICTURES / f"{k}.png", picture)
        labels = {name: str(target.classes[target.truth[index]]) for name, target in targets.items()}
        about.append({"k": k, **about_example(llava, inputs, example), "labels": labels, "classes": classes})
        on_progress(1)
    ids = [selection.examples[index].id for index in maps.examples]
    table = _table(llava, sites, depths, ids, classes, p_true, predicted)
    with user_errors(OSError):
        commit(config.folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        commit(config.folder / TABLE, table.to_parquet(index=False))


def _fit_site(
    site: Site,
    *,
    group: str,
    store: ActivationStore,
    targets: Sequence[TargetPlan],
    maps: MapPlan,
    plan: FoldPlan,
    config: SweepConfig,
) -> dict[str, Any]:
    x = store.read(site, group)[: len(maps.training)].to(device=config.fit_device, dtype=torch.float32)
    return fit_patch_probes(x, targets, maps.training, plan, config.probing.probe)


def patches_of_first(llava: Llava, inputs: Inputs) -> Bool[Tensor, "1 pos"]:
    """True at the patches of the first picture, without a class token."""
    mask = torch.zeros(inputs.input_ids.shape, dtype=torch.bool)
    first = inputs.layout[0].images[0].start + llava.n_class_tokens
    mask[0, first : first + llava.grid[0] * llava.grid[1]] = True
    return mask


def about_example(llava: Llava, inputs: Inputs, example: Example) -> dict[str, Any]:
    """The entry of an example in ``maps.json``, without labels; boxes are clipped to the model's picture."""
    geometry, side = inputs.geometry[inputs.image_of[0][0]], llava.image_size
    boxes = {}
    for name, bounds in example.boxes.items():
        left, top, right, bottom = (min(1.0, max(0.0, edge / side)) for edge in geometry.to_model(bounds))
        if left < right and top < bottom:
            boxes[name] = [left, top, right, bottom]
    focus = example.focus if example.focus in boxes else None
    return {
        "example": example.id, "question": example.question, "answer": example.answer, "boxes": boxes, "focus": focus,
    }  # fmt: skip


def _table(
    llava: Llava,
    sites: Sequence[Site],
    depths: Sequence[float],
    ids: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    p_true: npt.NDArray[np.float32],
    predicted: npt.NDArray[np.int64],
) -> pd.DataFrame:
    """One row for each target, site, example and patch, in this order."""
    t, s, k, patch = (axis.ravel() for axis in np.indices(p_true.shape, dtype=np.int32))

    def of_site(values: Sequence[Label | None]) -> npt.NDArray[Any]:
        return np.array(values, dtype=object)[s]

    labels = [np.array(found, dtype=object) for found in classes.values()]
    columns = {
        "target": np.array(list(classes), dtype=object)[t],
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
