"""From stored activations to the table of results: every target at every site, with its controls.

The columns are described in ``docs/results.md``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from models.sites import Site
from probes.activations.store import ActivationStore
from probes.config import SweepConfig
from probes.evaluation.controls import pixel_features
from probes.evaluation.evaluate import Kind, Result, evaluate
from probes.evaluation.folds import FoldPlan
from probes.evaluation.parallel import each_site, processes_for
from probes.evaluation.refit import Rows, refit
from probes.linear.saving import FittedProbe
from probes.probe_data import ProbeData
from records.resampling import adjust_p
from tasks.example import Example

COLUMNS = (
    "model", "part", "site", "layer", "name", "depth", "tokens", "pool", "target", "probe", "metric", "split",
    "score", "lower", "upper", "control", "selectivity", "chance", "shuffled", "random_init", "accuracy", "n", "p", "q",
)  # fmt: skip
_PROBES: dict[str, Kind] = {"logistic": "logistic", "ridge": "ridge", "mass-mean": "mass_mean", "mlp": "mlp"}
_PIXEL_SIDE = 16  # 768 numbers a picture: as wide as the activations of a small model
_CHUNK = 256  # pictures opened at a time


class FittedSites(NamedTuple):
    """The scores and the probes of a sweep."""

    table: pd.DataFrame
    """One row for each target, site and split, in the order of targets and of the forward pass."""
    probes: tuple[FittedProbe, ...]
    """The linear probes on all fitted examples; empty for the probe ``mlp``."""


def fit_sites(
    store: ActivationStore,
    control_store: ActivationStore | None,
    sites: Sequence[Site],
    depths: Sequence[float],
    selection: ProbeData,
    plans: Mapping[str, FoldPlan],
    config: SweepConfig,
    on_progress: Callable[[int], None],
) -> FittedSites:
    """Score every target at every site, with its controls.

    Args:
        store: Activations of the model.
        control_store: Those of the randomly initialised model for the fitted examples; None without controls.
        sites: What is stored.
        depths: For each site its relative depth.
        selection: Examples, targets, tokens.
        plans: Folds by token group.
        config: Gives probe, folds, controls and seed.
        on_progress: Told the number of sites that are newly done.
    """
    rows: list[dict[str, Any]] = []
    probes: list[FittedProbe] = []
    for group, plan in plans.items():
        bare = plan.fitted_only()
        work = partial(
            _fit_site, group=group, store=store, plan=plan, control_store=control_store, bare=bare, config=config
        )
        widest = max(store.width(site, group) for site in sites)
        processes = processes_for(plan, widest, len(sites), config.model.device)
        fitted = each_site(work, sites, processes=processes)
        for site, depth, (results, random_init, linear) in zip(sites, depths, fitted, strict=True):
            where = {
                "part": site.part, "site": str(site), "layer": site.layer, "name": site.name, "depth": depth,
                "tokens": group, "pool": config.sites.pool,
            }  # fmt: skip
            for target, result in results.items():
                if target in linear:
                    classes = tuple(bare.targets[target].classes.tolist())
                    probes.append(FittedProbe(target, site, group, result.probe, classes, *linear[target]))
                rows.extend(_rows(result, plan, where, random_init.get(target, float("nan"))))
            on_progress(1)
        if config.probing.controls and all(example.pictures for example in _each(selection.examples)):
            pixels = _evaluate(_pixels(selection.examples, group), plan, config)
            where = {
                "part": "pixels", "site": "pixels", "layer": None, "name": "pixels", "depth": 0.0,
                "tokens": group, "pool": "none",
            }  # fmt: skip
            for result in pixels.values():
                rows.extend(_rows(result, plan, where, float("nan")))
    table = pd.DataFrame(rows)
    table["model"] = config.model.name
    table["q"] = np.nan
    for _, family in table[(table["split"] == "cv") & (table["part"] != "pixels")].groupby("target"):
        table.loc[family.index, "q"] = adjust_p(family["p"].to_numpy())
    order = {target.name: number for number, target in enumerate(selection.targets)}
    table = table.sort_values("target", key=lambda names: names.map(order), kind="stable")
    table["layer"] = table["layer"].astype("Int64")
    return FittedSites(table[list(COLUMNS)].reset_index(drop=True), tuple(probes))


def _fit_site(
    site: Site,
    *,
    group: str,
    store: ActivationStore,
    plan: FoldPlan,
    control_store: ActivationStore | None,
    bare: FoldPlan,
    config: SweepConfig,
) -> tuple[dict[str, Result], dict[str, float], dict[str, Rows]]:
    """By target: the scores at one site, the score on the randomly initialised model, and the fitted linear probe."""
    x = _on_device(store.read(site, group), config)
    results = _evaluate(x, plan, config)
    linear = refit(x[torch.from_numpy(plan.fitted).to(x.device)], bare, results)
    if control_store is None:
        return results, {}, linear
    control = _evaluate(control_store.read(site, group), bare, config)
    return results, {target: result.score.value for target, result in control.items()}, linear


def _evaluate(x: Float[Tensor, "example d"], plan: FoldPlan, config: SweepConfig) -> dict[str, Result]:
    return dict(evaluate(_on_device(x, config), plan, probe=_PROBES[config.probing.probe]))


def _on_device(x: Float[Tensor, "example d"], config: SweepConfig) -> Float[Tensor, "example d"]:
    device = config.model.device if config.model.device.startswith("cuda") else "cpu"
    return x.to(device=device, dtype=torch.float32)


def _rows(result: Result, plan: FoldPlan, where: dict[str, Any], random_init: float) -> Iterator[dict[str, Any]]:
    """The cross-validated score and the transfer scores of one probe, as rows."""
    common = {**where, "target": result.target, "probe": result.probe, "metric": result.metric}
    nan = float("nan")

    def control(name: str) -> float:
        return result.controls[name][result.metric].value if name in result.controls else nan

    def accuracy(scores: Any) -> float:
        return scores["accuracy"].value if "accuracy" in scores else nan

    score = result.score
    yield {
        **common,
        "split": "cv",
        "score": score.value,
        "lower": score.lower,
        "upper": score.upper,
        "control": control("control_task"),
        "selectivity": result.selectivity,
        # Balanced accuracy gives every constant answer the same, whatever the folds' majorities.
        "chance": 1 / len(np.unique(result.truth[plan.fitted])) if result.kind == "class" else result.chance,
        "shuffled": control("shuffled"),
        "random_init": random_init,
        "accuracy": accuracy(result.scores),
        "n": score.n,
        "p": result.p_value,
    }
    for name, scores in result.transfer.items():
        moved = scores[result.metric]
        labels = np.unique(result.truth[plan.transfer[name]])
        yield {
            **common,
            "split": name,
            "score": moved.value,
            "lower": moved.lower,
            "upper": moved.upper,
            "control": nan,
            "selectivity": nan,
            # A constant answer recalls one of the classes that occur, and none of the others.
            "chance": 1 / len(labels) if result.kind == "class" else result.chance,
            "shuffled": nan,
            "random_init": nan,
            "accuracy": accuracy(scores),
            "n": moved.n,
            "p": nan,
        }


def _pixels(examples: Sequence[Example], group: str) -> Float[Tensor, "example d"]:
    """Raw pixels of each example's first picture; for object tokens of what its focus box holds."""
    parts = []
    for start in range(0, len(examples), _CHUNK):
        chunk = [examples[i] for i in range(start, min(start + _CHUNK, len(examples)))]
        parts.append(pixel_features([_region(example, group).resize((64, 64)) for example in chunk], size=_PIXEL_SIDE))
    return torch.cat(parts)


def _region(example: Example, group: str) -> Image.Image:
    picture = example.pictures[0].open()
    if group != "object" or example.focus is None:
        return picture
    box = example.boxes[example.focus]
    left, top = int(box.left), int(box.top)
    right, bottom = max(left + 1, round(box.right)), max(top + 1, round(box.bottom))
    return picture.crop((left, top, right, bottom))


def _each(examples: Sequence[Example]) -> Iterator[Example]:
    return (examples[i] for i in range(len(examples)))
