"""The results of ``lens-sweep``: how often lenses name the object, by layer, inside its box and outside.

The best layer of a lens counts only if the object's words are found in its box more often than those of every control,
corrected for the choice among all layers. Without a control nothing is shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from jaxtyping import Float

from models.sites import Site
from records.intervals import (
    Intervals,
    mean_intervals,
    quantile,
    share_difference_intervals,
    share_intervals,
    share_sizes,
    shifted_share,
)
from records.named import named_interval
from records.resampling import (
    NAMED_BELOW,
    NORMAL,
    SignFlips,
    select_best,
    share_needed,
    sign_flip_tests,
)

INTERVAL = "95% over groups of examples; difference: of the means inside and outside, paired"
HITS = ("hit@1", "hit@5", "hit@10")
METRICS = (*HITS, "mrr")
CONTROLS = ("other", "frequency", "random_init")
BEST = ("p_max", "best_share", "best_score", "best_lower", "best_upper")
COLUMNS = (
    "model", "lens", "part", "site", "layer", "name", "depth", "place", "words", "metric", "split", "score", "lower",
    "upper", "n", "n_groups", "interval", *BEST,
)  # fmt: skip
_CURVE = ("lens", "split", "metric", "site", "place", "words")
Array = npt.NDArray[np.float64]
_ROUNDING = 1e-9  # of the size of the values


class Curve(NamedTuple):
    """What a lens finds at some layers, as sums over the patches in the box of each group."""

    hits: Float[Array, "layer group"]
    """Patches at which the object's words are found."""
    patches: Float[Array, "layer group"]
    """Patches."""
    controls: Mapping[str, Float[Array, "layer group"]]
    """Patches at which a control's words are found."""


def best_layer(curve: Curve, *, seed: int) -> pd.DataFrame:
    """One row for each layer: ``p_max, best_share, best_score, best_lower, best_upper``.

    ``p_max`` is that of the difference from the control it is least different from: object and control change places in
    random groups, in all layers together (`sign_flip_tests`). It is 1 for a layer below a control, and NaN without
    controls or if a group lacks one. ``best_share`` is the share of bootstrap draws in which the layer has the highest
    score; the last three are the best layer's score with its 95 % interval, corrected for the choice and, if ``p_max``
    is below 0.05, for being named only then. They are NaN for other layers.

    Args:
        curve: In the order of the forward pass.
        seed: Of signs and draws.

    Example:
        >>> hits = np.array([[0.0] * 20, [3.0] * 15 + [1.0] * 5])
        >>> found = best_layer(Curve(hits, np.full((2, 20), 4.0), {"other": 0 * hits}), seed=0)
        >>> (found["p_max"] < 0.05).tolist(), found["best_share"].tolist()
        ([False, True], [0.0, 1.0])
    """
    found = pd.DataFrame(np.nan, index=range(len(curve.hits)), columns=list(BEST))
    asked = (curve.patches > 0).all(0)
    hits, patches = curve.hits[:, asked], curve.patches[:, asked]
    if hits.shape[1] < 2:
        return found
    share, size, degrees = share_sizes(hits, patches)
    ends, z = share_intervals(hits, patches), quantile(degrees)
    own = hits - share[:, None] * patches
    best = select_best(share, (ends.upper - ends.lower) / 2 / z, own, seed=seed)
    at, usual = best.place, float(z[best.place])
    height, lowest, highest = max(best.optimism, 0.0), best.highest * usual / NORMAL, -usual  # errors below the score
    against = [hits - control[:, asked] for control in curve.controls.values()]
    if against and not np.isnan(against).any():  # a control that some group lacks cannot be beaten
        tests = [sign_flip_tests(apart, seed=seed, kept=[at]) for apart in against]
        p_max = [np.where(apart.sum(1) > 0, test.p_max, 1.0) for apart, test in zip(against, tests, strict=True)]
        found["p_max"] = np.max(p_max, axis=0)
        if float(found["p_max"].iloc[at]) < NAMED_BELOW:
            nearest = int(np.argmax([test.p_max[at] for test in tests]))
            luck = _luck(tests[nearest], at, against[nearest][at], patches[at], own[at])
            height, lowest, highest = max(height, luck.score), max(lowest, usual + luck.lower), highest + luck.upper
    shifted = [float(shifted_share(share[at], size[at], shift)) for shift in (height, lowest, highest)]
    found["best_share"] = best.shares
    found.loc[at, ["best_score", "best_lower", "best_upper"]] = shifted
    return found


class _Luck(NamedTuple):
    """By how many standard errors a score and the ends of its interval are too high because the layer is named."""

    lower: float
    """Of the lower end."""
    score: float
    """Of the score."""
    upper: float
    """Of the upper end."""


def _luck(
    test: SignFlips,
    layer: int,
    apart: Float[Array, " group"],
    patches: Float[Array, " group"],
    own: Float[Array, " group"],
) -> _Luck:
    """Shifts of a named layer's score and interval that correct for its being named, in standard errors.

    They are those of the difference from the control, for which it is named, times their correlation over groups.

    Args:
        test: Of the difference from the control.
        layer: The layer.
        apart: Hits of the object's words less those of the control's.
        patches: Patches.
        own: What each group adds to the score.
    """
    rest = apart - apart.sum() / patches.sum() * patches
    n, length = len(rest), float((rest**2).sum() ** 0.5)
    scales = [float((values**2).sum() ** 0.5) for values in (apart, patches, own)]
    if length <= _ROUNDING * scales[0] or scales[2] <= _ROUNDING * scales[1]:  # all groups have the same rate
        return _Luck(0.0, 0.0, 0.0)
    seen = float(apart.sum()) / length * ((n - 1) / n) ** 0.5
    together = float(np.clip((rest * own).sum() / length / scales[2], 0, 1))
    share = share_needed(test, layer, lambda share: rest + share * (apart - rest))
    named = named_interval(seen, share * seen, n - 1)
    usual = float(quantile(n - 1))
    shifts = seen - usual - named.lower, seen - named.middle, seen + usual - named.upper
    return _Luck(*(together * max(shift, 0.0) for shift in shifts))


def read_curve(rows: pd.DataFrame, metric: str, sites: Sequence[str]) -> Curve:
    """The curve of one lens and split from sums over patches.

    Args:
        rows: ``site, words, group, patches`` and the metric, of the patches in the box.
        metric: Column of the hits.
        sites: The layers, in order.
    """

    def table(words: str, column: str) -> pd.DataFrame:
        own = rows[rows["words"] == words]
        return own.pivot_table(index="site", columns="group", values=column, aggfunc="sum").reindex(list(sites))

    patches = table("object", "patches")

    def values(words: str, column: str) -> Array:
        found = table(words, column).reindex(columns=patches.columns)
        return found.to_numpy(dtype=float)

    controls = {words: values(words, metric) for words in CONTROLS if (rows["words"] == words).any()}
    return Curve(values("object", metric), patches.to_numpy(dtype=float), controls)


def tabulate(scores: pd.DataFrame, nearest: pd.DataFrame, *, model: str, n_layers: int, seed: int = 0) -> pd.DataFrame:
    """The table of results; ``docs/results.md`` describes its columns.

    Args:
        scores: The rows of ``score_example.score_rows`` for all examples.
        nearest: The rows of ``score_example.nearest_rows``; may be empty.
        model: The model's name.
        n_layers: Its blocks.
        seed: Of the tests and draws about the best layer.
    """
    rows: list[dict[str, Any]] = []
    keys = ["lens", "site", "words", "split"]
    for (lens, site, words, split), part in scores.groupby(keys, sort=False):
        about = {"model": model, "lens": lens, **place_of(str(site), n_layers), "words": words, "split": split}
        inside, outside = (part[part["place"] == place] for place in ("inside", "outside"))
        for place, own in (("inside", inside), ("outside", outside)):
            rows += [about | {"place": place} | found for found in _scores(own)]
        rows += [about | {"place": "difference"} | found for found in _differences(inside, outside)]
    for (lens, site, words, split), part in nearest.groupby(keys, sort=False):
        about = {"model": model, "lens": lens, **place_of(str(site), n_layers), "words": words, "split": split}
        rows += [about | {"place": "all"} | found for found in _nearest(part)]
    table = pd.DataFrame(rows).assign(interval=INTERVAL)
    table["layer"] = table["layer"].astype("Int64")
    table = table.merge(_best_layers(scores, seed=seed), how="left", on=list(_CURVE))
    return table[list(COLUMNS)]


def _best_layers(scores: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What is known about the best layer of every lens, split and kind of hit."""
    inside = scores[scores["place"] == "inside"]
    found = []
    for (lens, split), rows in inside.groupby(["lens", "split"], sort=False):
        sites = [str(site) for site in dict.fromkeys(rows["site"])]
        for metric in HITS:
            own = best_layer(read_curve(rows, metric, sites), seed=seed)
            about = {"lens": str(lens), "split": str(split), "metric": metric, "place": "inside", "words": "object"}
            found.append(own.assign(site=sites, **about))
    return pd.concat(found, ignore_index=True)


def place_of(site: str, n_layers: int) -> dict[str, Any]:
    """Part, site, layer, name and depth of a site of the language model."""
    found = Site.parse(site)
    layer = int(found.layer or 0)
    depth = layer / n_layers if found.name == "resid_pre" else (layer + 1) / n_layers
    return {"part": found.part, "site": site, "layer": layer, "name": found.name, "depth": depth}


def _sums(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, Array]:
    """Sums over the examples of each group."""
    summed = rows.groupby("group", sort=True)[list(columns)].sum()
    return {column: summed[column].to_numpy(dtype=float) for column in columns}


def _scores(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Every metric over the patches of a place; groups without such a patch do not count."""
    sums = _sums(rows, ("patches", *HITS, "reciprocal_rank"))
    asked = sums["patches"]
    about = {"n": int(asked.sum()), "n_groups": int((asked > 0).sum())}
    found = []
    for metric in METRICS:
        own = sums["reciprocal_rank" if metric == "mrr" else metric]
        score = float(own.sum() / max(asked.sum(), 1))
        if metric == "mrr":  # linearised, because few groups with high ranks make it skewed
            some = asked > 0
            varied = score + (own - score * asked)[some] / (asked.sum() / max(some.sum(), 1))
            ends = mean_intervals(varied[None]).within(0.0, 1.0)
        else:
            ends = share_intervals(own[None], asked[None])
        found.append({"metric": metric, **_named(score, ends), **about})
    return found


def _differences(inside: pd.DataFrame, outside: pd.DataFrame) -> list[dict[str, Any]]:
    """The mean over groups of the difference between inside and outside."""
    columns = ("patches", *HITS, "reciprocal_rank")
    both = (
        inside.groupby("group", sort=True)[list(columns)].sum(),
        outside.groupby("group", sort=True)[list(columns)].sum(),
    )
    a, b = (one.reindex(both[0].index) for one in both)
    known = (a["patches"] > 0) & (b["patches"] > 0)
    found = []
    for metric in METRICS:
        column = "reciprocal_rank" if metric == "mrr" else metric
        hits, patches = ([one.loc[known, name].to_numpy(dtype=float) for one in (a, b)] for name in (column, "patches"))
        change = hits[0] / patches[0] - hits[1] / patches[1]
        if len(change):
            n = int(patches[0].sum() + patches[1].sum())
            if metric == "mrr":
                ends = mean_intervals(change[None])
            else:
                ends = share_difference_intervals(*(one[None] for one in (*hits, *patches)))
            found.append({"metric": metric, **_named(change.mean(), ends), "n": n, "n_groups": len(change)})
    return found


def _nearest(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Share of patches whose nearest text lies in the middle third of the layers, and its mean depth."""
    sums = _sums(rows, ("patches", "middle", "depth"))
    asked = sums["patches"]
    about = {"n": int(asked.sum()), "n_groups": len(asked)}
    share = share_intervals(sums["middle"][None], asked[None])
    depth = mean_intervals((sums["depth"] / asked)[None])
    return [
        {"metric": "nearest_in_middle", **_named(sums["middle"].sum() / asked.sum(), share), **about},
        {"metric": "nearest_depth", **_named((sums["depth"] / asked).mean(), depth), **about},
        {"metric": "index_in_middle", "score": float(rows["index_middle"].iloc[0]), **about},
    ]


def _named(value: float, interval: Intervals) -> dict[str, float]:
    return {"score": float(value), "lower": float(interval.lower[0]), "upper": float(interval.upper[0])}


def middle_sentences(results: pd.DataFrame) -> tuple[str, ...]:
    """For each split, whether the projector's outputs lie nearest to middle text layers; none without a latent lens.

    "Yes" if their share in the middle third lies above the share of the index's layers that are there, and above that
    of a randomly initialised model, with both intervals; without that control never. "No" if it lies below the first.
    """
    entry = results[(results["name"] == "resid_pre") & results["metric"].isin(("nearest_in_middle", "index_in_middle"))]
    found = []
    for split in dict.fromkeys(entry["split"]):
        rows = entry[entry["split"] == split].set_index(["metric", "words"])
        own, level = rows.loc[("nearest_in_middle", "any")], float(rows.loc[("index_in_middle", "any"), "score"])
        random = ("nearest_in_middle", "random_init")
        control = rows.loc[random] if random in rows.index else None
        answer = "not shown"
        if own["upper"] < level:
            answer = "no"
        elif control is not None and own["lower"] > max(level, control["upper"]):
            answer = "yes"
        beside = "" if control is None else f"; of a randomly initialised model {_percent(control)}"
        found.append(
            f"Do projector outputs lie nearest to text of middle layers ({split})? {answer.capitalize()}: "
            f"{_percent(own)} of the patches have their nearest text in the middle third, which holds {level:.1%} of "
            f"the index{beside}."
        )
    return tuple(found)


def _percent(row: "pd.Series[Any]") -> str:
    ends = "" if pd.isna(row["lower"]) else f" [{row['lower']:.1%}, {row['upper']:.1%}]"
    return f"{row['score']:.1%}{ends}"
