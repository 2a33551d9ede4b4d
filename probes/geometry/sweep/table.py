"""The tables of ``geometry-sweep``: curves by layer, the map of layers, and what is found."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from probes.geometry.compare import PAIR_MEASURES, Measured, MeasurePlan, dimension_name
from probes.geometry.sweep.findings import (
    NEARER_IS_LOWER,
    UNKNOWN,
    Place,
    Verdict,
    best_place,
    described,
    has_interval,
    interval_of,
    judge_nearest,
    judge_peak,
)
from probes.geometry.sweep.layer_map import LayerMap
from probes.geometry.sweep.sides import IMAGE_CAPTION, ChosenRows, Comparison, LayerPair
from records.resampling import TAIL, permutation_p

Array = npt.NDArray[np.float64]
COLUMNS = (
    "comparison", "kind", "model_a", "model_b", "condition_a", "tokens_a", "condition_b", "tokens_b", "layer_a",
    "layer_b", "side", "measure", "rank", "chosen", "k", "target", "value", "lower", "upper", "error", "control",
    "control_lower", "control_upper", "p", "chance", "random_init", "random_lower", "random_upper", "n", "n_duplicates",
    "interval",
)  # fmt: skip
MAP_COLUMNS = (
    "comparison", "model_a", "model_b", "measure", "layer_a", "layer_b", "value", "lower", "upper", "control",
    "control_upper", "chance", "n", "interval",
)  # fmt: skip
FINDING_COLUMNS = (
    "comparison", "kind", "model_a", "model_b", "finding", "side", "measure", "layer_a", "layer_b", "first", "last",
    "value", "lower", "upper", "control", "random_init", "p", "shown", "reason", "n", "interval",
)  # fmt: skip
NEAREST = ("overlap", "mutual_knn", "cka_unbiased", "imbalance_a_to_b", "imbalance_b_to_a")


@dataclass(frozen=True, eq=False)
class Curves:
    """Everything measured for one comparison."""

    comparison: Comparison
    chosen: ChosenRows
    measured: dict[LayerPair, Measured]
    random: dict[LayerPair, Measured]
    """Of the randomly initialised model; empty without one."""
    layer_map: LayerMap | None

    @property
    def about(self) -> dict[str, Any]:
        """The columns that name the comparison."""
        a, b = self.comparison.a, self.comparison.b
        return {
            "comparison": self.comparison.name, "kind": self.comparison.kind, "model_a": a.stored.model,
            "model_b": b.stored.model, "condition_a": a.condition, "tokens_a": a.tokens, "condition_b": b.condition,
            "tokens_b": b.tokens,
        }  # fmt: skip


class Name:
    """The parts of the name of a value: side, measure, rank and target."""

    def __init__(self, name: str) -> None:
        words = name.split(" ", 2)
        self.text, self.is_pair = name, name in PAIR_MEASURES
        self.side = "both" if self.is_pair else words[0]
        self.measure = name if self.is_pair else words[1]
        rest = words[2] if len(words) > 2 else ""
        self.rank = {"gride": rest, "two_nn": "1,2"}.get(self.measure, "")
        self.target = rest if self.measure == "label_overlap" else ""

    @property
    def place(self) -> tuple[str, int, tuple[int, ...]]:
        """For sorting: side, measure, rank."""
        order = ("gride", "two_nn", "label_overlap", *PAIR_MEASURES)
        rank = tuple(int(number) for number in self.rank.split(",")) if self.rank else ()
        return self.side, order.index(self.measure), rank


def tabulate(curves: Sequence[Curves], plan: MeasurePlan) -> pd.DataFrame:
    """The table of results; ``docs/results.md`` describes its columns."""
    rows = [row for one in curves for row in _rows(one, plan)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(curves: Curves, plan: MeasurePlan) -> Iterator[dict[str, Any]]:
    neighbours = {"overlap": plan.k, "label_overlap": plan.k, "mutual_knn": plan.mutual_k, "imbalance_a_to_b": 1,
                  "imbalance_b_to_a": 1}  # fmt: skip
    chosen = f"{plan.rank[0]},{plan.rank[1]}"
    for pair, found in curves.measured.items():
        random = curves.random.get(pair)
        for name in sorted(map(Name, found.values), key=lambda name: name.place):
            key, value = name.text, found.values[name.text]
            known = not name.rank or has_interval(int(name.rank.rpartition(",")[2]), found.n)
            ends = interval_of(name.measure, value, found.draws[key]) if known else UNKNOWN
            shuffled = found.shuffles.get(key)
            n = found.n_joint if key == "id_correlation" else found.n
            k = neighbours.get(name.measure)
            shared = name.measure in ("overlap", "mutual_knn")
            row = {
                **curves.about, "layer_a": pair.a, "layer_b": pair.b, "side": name.side, "measure": name.measure,
                "rank": name.rank, "k": k,
                "chosen": name.measure != "gride" or name.rank == chosen,
                "target": name.target, "value": value, "lower": ends.lower,
                "upper": ends.upper, "error": found.errors.get(key, np.nan),
                "chance": k / (n - 1) if shared and k else np.nan, "n": n,
                "n_duplicates": curves.chosen.n_duplicates,
                "interval": described(value, ends.lower, high_rank=not known),
            }  # fmt: skip
            if shuffled is not None:
                sign = -1 if name.measure in NEARER_IS_LOWER else 1
                low, high = _range(shuffled)
                row |= {"control": shuffled.mean(), "control_lower": low, "control_upper": high,
                        "p": permutation_p(sign * value, sign * shuffled)}  # fmt: skip
            if random is not None:
                ends = interval_of(name.measure, random.values[key], random.draws[key]) if known else UNKNOWN
                row |= {"random_init": random.values[key], "random_lower": ends.lower, "random_upper": ends.upper}
            yield row


def _range(shuffled: Array) -> tuple[float, float]:
    """The values that 2.5 % of the shuffles lie below and above, or the outermost ones."""
    ordered = np.sort(shuffled)
    place = max(int(TAIL * (len(ordered) + 1)) - 1, 0)
    return float(ordered[place]), float(ordered[-1 - place])


def tabulate_maps(curves: Sequence[Curves], plan: MeasurePlan) -> pd.DataFrame:
    """The table of the layer maps; empty without one."""
    rows = []
    for one in curves:
        found = one.layer_map
        if found is None:
            continue
        about = {key: one.about[key] for key in ("comparison", "model_a", "model_b")}
        n = next(iter(one.measured.values())).n
        for measure, values in found.values.items():
            k = {"overlap": plan.k, "mutual_knn": plan.mutual_k}.get(measure)
            for (i, a), (j, b) in ((x, y) for x in enumerate(found.layers_a) for y in enumerate(found.layers_b)):
                row = {**about, "measure": measure, "layer_a": a, "layer_b": b, "value": values[i, j], "n": n,
                       "chance": k / (n - 1) if k else 0.0}  # fmt: skip
                if measure == "overlap":
                    ends = interval_of(measure, values[i, j], found.draws[:, i, j])
                    shuffled = found.shuffles[:, i, j]
                    row |= {"lower": ends.lower, "upper": ends.upper, "control": shuffled.mean(),
                            "interval": described(values[i, j], ends.lower),
                            "control_upper": _range(shuffled)[1]}  # fmt: skip
                rows.append(row)
    return pd.DataFrame(rows, columns=list(MAP_COLUMNS))


def find_places(curves: Sequence[Curves], plan: MeasurePlan) -> pd.DataFrame:
    """Where dimensions peak, and where two sides are nearest, with intervals and verdicts."""
    rows = [row for one in curves for row in (*_peaks(one, plan), *_nearest(one, plan))]
    return pd.DataFrame(rows, columns=list(FINDING_COLUMNS))


def _stacked(measured: Mapping[LayerPair, Measured], name: str) -> tuple[Array, Array]:
    """The values by layer, and the draws ``draw layer``."""
    values = np.array([found.values[name] for found in measured.values()])
    return values, np.stack([found.draws[name] for found in measured.values()], 1)


def _peaks(curves: Curves, plan: MeasurePlan) -> Iterator[dict[str, Any]]:
    pairs = list(curves.measured)
    n = next(iter(curves.measured.values())).n
    for side in "ab":
        name = dimension_name(side, plan.rank)
        place = best_place("gride", *_stacked(curves.measured, name), seed=plan.seed)
        known = has_interval(plan.rank[1], n)
        if not known:
            place = place._replace(lower=np.nan, upper=np.nan)
        random, beside = None, np.nan
        if curves.random:
            random = best_place("gride", *_stacked(curves.random, name), seed=plan.seed)
            beside = curves.random[pairs[place.cell]].values[name]
        verdict = judge_peak(place, random)
        layers = [pair.a if side == "a" else pair.b for pair in pairs]
        row = _row(curves, "dimension peaks", "gride", place, verdict, layers)
        own = {"layer_b": None} if side == "a" else {"layer_a": None}
        yield row | {"side": side, "layer_a": layers[place.cell], "layer_b": layers[place.cell], **own,
                     "random_init": beside, "n": n,
                     "interval": described(place.value, place.lower, high_rank=not known)}  # fmt: skip


def _nearest(curves: Curves, plan: MeasurePlan) -> Iterator[dict[str, Any]]:
    pairs = list(curves.measured)
    n = next(iter(curves.measured.values())).n
    kinds = [("nearest", 1)] if curves.comparison.kind == IMAGE_CAPTION else [("nearest", 1), ("farthest", -1)]
    for finding, way in kinds:
        for name in NEAREST if way > 0 else ("overlap",):
            sign = way * (-1 if name in NEARER_IS_LOWER else 1)
            place = best_place(name, *_stacked(curves.measured, name), seed=plan.seed, sign=sign)
            shuffled = np.stack([found.shuffles[name] for found in curves.measured.values()], 1)
            random = curves.random.get(pairs[place.cell])
            ends = None if random is None else interval_of(name, random.values[name], random.draws[name])
            if way > 0:
                verdict = judge_nearest(place, shuffled, ends, sign=sign)
            else:
                verdict = Verdict(not place.everywhere, np.nan, "the range holds every layer" * place.everywhere)
            pair = pairs[place.cell]
            yield _row(curves, finding, name, place, verdict, [one.a for one in pairs]) | {
                "side": "both", "layer_a": pair.a, "layer_b": pair.b, "control": shuffled[:, place.cell].mean(),
                "random_init": np.nan if random is None else random.values[name], "n": n,
            }  # fmt: skip
    if curves.layer_map is not None:
        yield _nearest_pair(curves, curves.layer_map, plan, n)


def _nearest_pair(curves: Curves, found: LayerMap, plan: MeasurePlan, n: int) -> dict[str, Any]:
    """The nearest layers of the map; the range is that of the layers of b beside the nearest layer of a."""
    shape = found.values["overlap"].shape
    flat = best_place(
        "overlap", found.values["overlap"].ravel(), found.draws.reshape(len(found.draws), -1), seed=plan.seed
    )
    verdict = judge_nearest(flat, found.shuffles.reshape(len(found.shuffles), -1), None, sign=1)
    i, j = (int(index) for index in np.unravel_index(flat.cell, shape))
    row = best_place("overlap", found.values["overlap"][i], found.draws[:, i], seed=plan.seed)
    return _row(curves, "nearest layers", "overlap", row, verdict, list(found.layers_b)) | {
        "side": "both", "layer_a": found.layers_a[i], "layer_b": found.layers_b[j], "value": flat.value,
        "lower": flat.lower, "upper": flat.upper, "interval": described(flat.value, flat.lower),
        "control": found.shuffles[:, i, j].mean(), "n": n,
    }  # fmt: skip


def _row(
    curves: Curves, finding: str, measure: str, place: Place, verdict: Verdict, layers: Sequence[int]
) -> dict[str, Any]:
    about = {key: value for key, value in curves.about.items() if key in FINDING_COLUMNS}
    return {
        **about, "finding": finding, "measure": measure, "first": layers[place.first], "last": layers[place.last],
        "value": place.value, "lower": place.lower, "upper": place.upper, "p": verdict.p, "shown": verdict.shown,
        "reason": verdict.reason, "interval": described(place.value, place.lower),
    }  # fmt: skip
