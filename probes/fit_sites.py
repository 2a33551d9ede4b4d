"""Fit and score the probes of every target at every site, and write the scores as the table of results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from models.sites import Site
from probes.config import SweepConfig
from probes.evaluation.controls import pixel_features
from probes.evaluation.cross_validation import Result, evaluate
from probes.evaluation.folds import FoldPlan, Mask
from probes.evaluation.parallel import each_site, processes_for
from probes.evaluation.refit import Rows, refit
from probes.evaluation.scores import Score
from probes.evaluation.selection import Selected, select_sites
from probes.linear.saving import FittedProbe
from probes.probe_data import ProbeData
from probes.report_table import curve_names
from records.resampling import adjust_p
from tasks.example import Example

COLUMNS = (
    "model", "part", "site", "layer", "name", "depth", "tokens", "pool", "target", "probe", "metric", "split",
    "score", "lower", "upper", "interval", "control", "selectivity", "chance", "shuffled", "random_init", "accuracy",
    "n", "p", "q", "p_max", "best_share", "best_score", "best_lower", "best_upper",
)  # fmt: skip
_PIXEL_SIDE = 16  # 768 numbers for each picture, about the width of a small model


@runtime_checkable
class StoredRows(Protocol):
    """Pooled activations by site and token group."""

    def read(self, site: Site, group: str) -> Float[Tensor, "example d"]:
        """The activations of all examples at a site."""

    def width(self, site: Site, group: str) -> int:
        """The length of one activation."""


class FittedSites(NamedTuple):
    """The scores and the probes of a sweep."""

    table: pd.DataFrame
    """One row for each target, site and split, in this order; ``docs/results.md`` describes the columns."""
    probes: tuple[FittedProbe, ...]
    """The linear probes on all fitted examples; empty for the probe ``mlp``."""


def fit_sites(
    store: StoredRows,
    control_store: StoredRows | None,
    sites: Sequence[Site],
    depths: Sequence[float],
    selection: ProbeData,
    plans: Mapping[str, FoldPlan],
    config: SweepConfig,
    on_progress: Callable[[int], None],
) -> FittedSites:
    """Score every target at every site, with its controls.

    Args:
        store: Activations of the model at ``sites``.
        control_store: Those of the randomly initialised model for the fitted examples; None without controls.
        sites: The stored sites.
        depths: Relative depth of each site.
        selection: Examples, targets, tokens.
        plans: Folds by token group.
        config: Gives probe, folds, controls and seed.
        on_progress: Called with the number of sites that are newly done.
    """
    rows: list[dict[str, Any]] = []
    probes: list[FittedProbe] = []
    validated: dict[int, Result] = {}  # by the number of the cross-validated row
    examples = selection.examples
    with_pixels = config.probing.controls and all(examples[i].pictures for i in range(len(examples)))
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
                validated[len(rows)] = result
                rows.extend(_rows(result, plan, where, random_init.get(target)))
            on_progress(1)
        if with_pixels:
            where = {"part": "pixels", "site": "pixels", "layer": None, "name": "pixels", "depth": 0.0}
            where |= {"tokens": group, "pool": "none"}
            for result in _evaluate(_pixels(examples, group), plan, config).values():
                rows.extend(_rows(result, plan, where, None))
    table = pd.DataFrame(rows).reindex(columns=["curve", *COLUMNS])
    table["model"] = config.model.name
    table["curve"] = curve_names(table)
    for _, family in table[(table["split"] == "cv") & (table["part"] != "pixels")].groupby("target"):
        table.loc[family.index, "q"] = adjust_p(family["p"].to_numpy())
        curves = list(zip(family["part"], family["curve"], family["tokens"], strict=True))
        selected = select_sites([validated[i] for i in family.index], curves, seed=config.seed)
        table.loc[family.index, list(Selected._fields)] = selected
    order = {target.name: number for number, target in enumerate(selection.targets)}
    table = table.sort_values("target", key=lambda names: names.map(order), kind="stable")
    table["layer"] = table["layer"].astype("Int64")
    return FittedSites(table[list(COLUMNS)].reset_index(drop=True), tuple(probes))


def _fit_site(
    site: Site,
    *,
    group: str,
    store: StoredRows,
    plan: FoldPlan,
    control_store: StoredRows | None,
    bare: FoldPlan,
    config: SweepConfig,
) -> tuple[Mapping[str, Result], dict[str, float], dict[str, Rows]]:
    """By target: the scores at one site, the score on the randomly initialised model, and the fitted linear probe."""
    x = store.read(site, group).to(device=config.fit_device, dtype=torch.float32)
    results = _evaluate(x, plan, config)
    linear = refit(x[torch.from_numpy(plan.fitted).to(x.device)], bare, results)
    if control_store is None:
        return results, {}, linear
    control = _evaluate(control_store.read(site, group), bare, config)
    return results, {target: result.score.value for target, result in control.items()}, linear


def _evaluate(x: Float[Tensor, "example d"], plan: FoldPlan, config: SweepConfig) -> Mapping[str, Result]:
    x = x.to(device=config.fit_device, dtype=torch.float32)
    return evaluate(x, plan, probe=config.probing.probe)


def _rows(result: Result, plan: FoldPlan, where: dict[str, Any], random_init: float | None) -> Iterator[dict[str, Any]]:
    """The cross-validated score and the transfer scores of one probe, as rows; columns without a value are absent."""

    def row(split: str, scores: Mapping[str, Score], mask: Mask) -> dict[str, Any]:
        score = scores[result.metric]
        return {
            **where,
            "target": result.target,
            "probe": result.probe,
            "metric": result.metric,
            "split": split,
            "score": score.value,
            "lower": score.lower,
            "upper": score.upper,
            "interval": score.interval,
            # A constant prediction recalls one of the classes that occur, whatever the folds' majorities.
            "chance": 1 / len(np.unique(result.truth[mask])) if result.kind == "class" else result.chance,
            "accuracy": scores["accuracy"].value if "accuracy" in scores else np.nan,
            "n": score.n,
        }

    def control(name: str) -> float:
        return result.controls[name][result.metric].value if name in result.controls else np.nan

    yield {
        **row("cv", result.scores, plan.fitted),
        "control": control("control_task"),
        "selectivity": result.selectivity,
        "shuffled": control("shuffled"),
        "random_init": np.nan if random_init is None else random_init,
        "p": result.p_value,
    }
    for name, scores in result.transfer.items():
        yield row(name, scores, plan.transfer[name])


def _pixels(examples: Sequence[Example], group: str) -> Float[Tensor, "example d"]:
    """Raw pixels of each example's first picture; for object tokens only those inside its focus box."""
    regions = (_region(examples[i], group).resize((64, 64)) for i in range(len(examples)))
    return torch.cat([pixel_features([region], size=_PIXEL_SIDE) for region in regions])


def _region(example: Example, group: str) -> Image.Image:
    picture = example.pictures[0].open()
    if group != "object" or example.focus is None:
        return picture
    box = example.boxes[example.focus]
    left, top = int(box.left), int(box.top)
    return picture.crop((left, top, max(left + 1, round(box.right)), max(top + 1, round(box.bottom))))
