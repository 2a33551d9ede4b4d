"""Measure how often intervals of ``geometry-sweep`` and ``lens-sweep`` cover the truth, and what they find in noise.

    python -m benchmarks.calibration_of_instruments            # minutes on two cores
    python -m benchmarks.calibration_of_instruments --quick    # half a minute, with few trials
    python -m benchmarks.calibration_of_instruments --part lenses

Geometry: two noisy views of the same points, then eight layers whose dimension is largest in layer 4 and which are
nearest to a ninth view in layer 5. The truth of a measure is its mean over all trials, since its interval is about
other examples of the same number. Lenses: ranks of the object's words in a picture's patches, by eight layers, with
pictures that differ; the truth is the mean over 30,000 pictures. Trials without an interval do not count in coverage.
The aim is 92 to 98 %, and at most 6 % where nothing is to be found.
"""

import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from benchmarks.calibration import COVERAGE, LEVEL, Line, covered, line, write_lines
from benchmarks.record import machine, simulation
from probes.geometry.compare import MeasurePlan, measure
from probes.geometry.search import Searched
from probes.geometry.sweep.findings import best_place, has_interval, interval_of, judge_nearest
from probes.lenses.score_example import DEEPEST, NEAREST
from probes.lenses.table import HITS, tabulate

Array = npt.NDArray[np.float64]
Trial = dict[str, float]
TRIALS = 300
N_LAYERS, PEAK, NEAREST_LAYER = 8, 4, 5
WORDS = ("object", "other")
_WIDTH, _SOURCES = 32, 8
_HALVES = MeasurePlan(shuffles=19)
_MEASURES = ("overlap", "mutual_knn", "imbalance_a_to_b", "cka_unbiased", "cosine_gap", "id_correlation")
_GRIDE = "a gride 16,32"


@dataclass(frozen=True)
class Views:
    """Two views of points.

    Args:
        n: Points.
        noise: Of each view, in standard deviations of what both share.
        clusters: Number of clusters in which the points lie; 0 for one cloud.
        layers: Eight layers against a ninth view instead of one pair.
        paired: False for views of different points.
    """

    n: int
    noise: float
    clusters: int = 0
    layers: bool = False
    paired: bool = True


@dataclass(frozen=True)
class Patches:
    """Ranks of an object's words in the patches of pictures.

    Args:
        pictures: Number of pictures.
        effect: How much smaller, in powers of e, the rank is in the best layer inside the box.
        patches: In the box and outside it.
        level: Typical rank of other words.
    """

    pictures: int
    effect: float
    patches: int = 20
    level: float = 200.0


GEOMETRY = {
    "2 views, n = 100": Views(100, 0.3),
    "2 views, n = 400": Views(400, 0.3),
    "2 noisy views, n = 200": Views(200, 1.0),
    "2 views of 6 clusters, n = 200": Views(200, 0.3, clusters=6),
    "2 views of 3 clusters, n = 300": Views(300, 1.0, clusters=3),
    "2 unrelated views, n = 200": Views(200, 0.3, paired=False),
    "8 layers, n = 200": Views(200, 0.1, layers=True),
    "8 layers, n = 120": Views(120, 0.1, layers=True),
    "8 unrelated layers, n = 200": Views(200, 0.1, layers=True, paired=False),
}
LENSES = {
    "8 layers, strong effect, 40 pictures": Patches(40, 4.0),
    "8 layers, weak effect, 40 pictures": Patches(40, 1.0, level=20.0),
    "8 layers, slight effect, 40 pictures": Patches(40, 0.2, level=20.0),
    "8 layers, strong effect, 12 pictures": Patches(12, 4.0),
    "8 layers, strong effect, 100 pictures of 4 patches": Patches(100, 4.0, patches=4),
    "8 layers of noise, 40 pictures": Patches(40, 0.0, level=20.0),
    "8 layers of noise, 12 pictures": Patches(12, 0.0, level=20.0),
}


def geometry_trial(made: Views, rng: np.random.Generator) -> Trial:
    """Values of the measures with the ends of their intervals, or what is named among eight layers."""
    return _layers(made, rng) if made.layers else _pair(made, rng)


def _pair(made: Views, rng: np.random.Generator) -> Trial:
    """Value and ends of every measure of two views."""
    sources, cluster = _points(made, rng)
    others = sources if made.paired else _points(made, rng)[0]
    labels = {"cluster": cluster} if made.clusters else {}
    found = measure(_searched(sources, made, rng), _searched(others, made, rng), _HALVES, labels)
    keys = {key.removeprefix("a "): key for key in found.values if key.startswith("a ") or key in _MEASURES}
    trial: Trial = {}
    for name, key in keys.items():
        ends = interval_of(name.partition(" ")[0], found.values[key], found.draws[key])
        trial |= {f"{name} value": found.values[key], f"{name} lower": ends.lower, f"{name} upper": ends.upper}
    return trial


def _layers(made: Views, rng: np.random.Generator) -> Trial:
    """Where the dimension peaks and which layer is nearest, with the values at all layers."""
    sources, _ = _points(made, rng)
    others = sources if made.paired else _points(made, rng)[0]
    other = _searched(others * _weights(NEAREST_LAYER), made, rng)
    layers = [_searched(sources * _weights(layer), made, rng) for layer in range(N_LAYERS)]
    found = [measure(layer, other, _HALVES) for layer in layers]
    places = {
        what: best_place(
            name, np.array([one.values[key] for one in found]), np.stack([one.draws[key] for one in found], 1), seed=0
        )
        for what, name, key in (("dimension", "gride", _GRIDE), ("overlap", "overlap", "overlap"))
    }
    shuffles = np.stack([one.shuffles["overlap"] for one in found], 1)
    trial: Trial = {"shown": judge_nearest(places["overlap"], shuffles, None, sign=1).shown}
    for (what, place), key in zip(places.items(), (_GRIDE, "overlap"), strict=True):
        trial |= {f"{what} {end}": float(getattr(place, end)) for end in ("cell", "first", "last", "lower", "upper")}
        trial |= {f"{what} at {layer}": one.values[key] for layer, one in enumerate(found)}
    return trial


def _points(made: Views, rng: np.random.Generator) -> tuple[Array, npt.NDArray[np.int64]]:
    """What the views share, ``point source``, and the points' clusters."""
    sources, cluster = rng.normal(size=(made.n, _SOURCES)), np.zeros(made.n, dtype=np.int64)
    if made.clusters:
        cluster = rng.integers(0, made.clusters, made.n)
        sources += 2 * np.random.default_rng(made.clusters).normal(size=(made.clusters, _SOURCES))[cluster]
    return sources, cluster


def _weights(layer: int) -> Array:
    """The strengths of the sources in a layer: most are strong in layer 4, few in the first and the last."""
    strong = 2 + 6 * np.exp(-0.5 * ((layer - PEAK - 0.2) / 1.5) ** 2)
    return np.asarray(np.clip(strong - np.arange(_SOURCES), 0.05, 1.0))


def _searched(sources: Array, made: Views, rng: np.random.Generator) -> Searched:
    """The sources in directions of the space that are the same in all views, with noise of the view."""
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(_WIDTH, _WIDTH)))[0][:_SOURCES]
    points = sources @ axes + made.noise / 2 * rng.normal(size=(made.n, _WIDTH))
    return Searched.of(torch.from_numpy(points.astype(np.float32)), k=_HALVES.listed, mutual_k=_HALVES.mutual_k)


def geometry_lines(regime: str, trials: list[Trial]) -> list[Line]:
    """Coverage of the measures, or of the layers that are named and their values."""
    rows, made = pd.DataFrame(trials), GEOMETRY[regime]
    if not made.layers:
        names = [str(column).removesuffix(" value") for column in rows if str(column).endswith(" value")]
        return [found for name in names for found in _measure_lines(name, regime, rows, made.n)]
    if not made.paired:
        return [line("nearest layer shown", regime, rows["shown"], (0.0, LEVEL[1]))]
    found = [line("power: nearest layer shown", regime, rows["shown"], (0.0, 1.0))]
    for what in ("dimension", "overlap"):
        true = rows[[f"{what} at {layer}" for layer in range(N_LAYERS)]].mean().to_numpy()
        chosen = true[rows[f"{what} cell"].to_numpy(dtype=int)]
        place = covered(rows[f"{what} first"], rows[f"{what} last"], float(true.argmax()))
        found.append(line(f"layer of the largest {what}", regime, place))
        found.append(line(f"largest {what}", regime, covered(rows[f"{what} lower"], rows[f"{what} upper"], chosen)))
    return found


def _measure_lines(name: str, regime: str, rows: pd.DataFrame, n: int) -> list[Line]:
    """Coverage of a measure, with an aim where its interval is printed, and the share of trials without one."""
    measured, _, rank = name.partition(" ")
    printed = measured != "gride" or has_interval(int(rank.rpartition(",")[2]), n)
    hits = covered(rows[f"{name} lower"], rows[f"{name} upper"], rows[f"{name} value"].mean())
    found = [line(name if printed else f"{name}, not printed", regime, hits, COVERAGE if printed else (0.0, 1.0))]
    none = float(np.isnan(hits).mean())
    return found + [Line(f"{name}: none", regime, none, len(hits), (0.0, 1.0))] * (none > 0)


def lens_trial(made: Patches, rng: np.random.Generator) -> Trial:
    """Scores with their intervals at the best layer and at the first, and what the table names."""
    sums = lens_sums(made, rng)
    results = tabulate(sums, pd.DataFrame(columns=[*NEAREST, "words"]), model="simulated", n_layers=N_LAYERS)
    own = results[results["words"] == "object"]
    trial: Trial = {}
    for row in own.to_dict("records"):
        if row["layer"] in (0, PEAK):
            name = f"{row['place']} {row['metric']} {row['layer']}"
            trial |= {f"{name} lower": float(row["lower"]), f"{name} upper": float(row["upper"])}
    best = own[(own["place"] == "inside") & (own["metric"] == "hit@10")]
    trial["named"] = float(best["p_max"].min() < 0.05)
    for row in best[best["best_score"].notna()].to_dict("records"):
        trial |= {"best": float(row["layer"]), "lower": row["best_lower"], "upper": row["best_upper"]}
    return trial


def lens_sums(made: Patches, rng: np.random.Generator, *, kinds: tuple[str, ...] = WORDS) -> pd.DataFrame:
    """The sums over patches that ``lens-sweep`` writes, of one lens and some kinds of words."""
    rows = []
    pictures = np.arange(made.pictures)
    own = 0.7 * rng.normal(size=made.pictures)  # pictures whose words are easy at every layer
    for layer in range(N_LAYERS):
        for words in kinds:
            for place in ("inside", "outside"):
                at = _typical_rank(made, layer, words, place)
                scale = np.exp(at + own + 0.5 * rng.normal(size=made.pictures))
                ranks = np.floor(rng.exponential(scale[:, None], (made.pictures, made.patches)))
                hits = {metric: (ranks < int(metric.removeprefix("hit@"))).sum(1) for metric in HITS}
                reciprocal = np.where(ranks < DEEPEST, 1 / (ranks + 1), 0.0).sum(1)
                rows.append(
                    pd.DataFrame(
                        {
                            "lens": "logit", "id": pictures.astype(str), "group": pictures, "split": "all",
                            "site": f"blocks.{layer}.hook_resid_post", "place": place, "words": words,
                            "patches": made.patches, **hits, "reciprocal_rank": reciprocal,
                        }
                    )
                )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def _typical_rank(made: Patches, layer: int, words: str, place: str) -> float:
    """The logarithm of the rank: smallest for the object's words inside the box in layer 4."""
    height = np.exp(-0.5 * ((layer - PEAK) / 2) ** 2) * (words == "object") * (place == "inside")
    return float(np.log(made.level) - made.effect * height)


@cache
def lens_truth(made: Patches) -> Mapping[tuple[str, str, int], float]:
    """The scores over 30,000 pictures by place, metric and layer."""
    many = lens_sums(Patches(30_000, made.effect, made.patches, made.level), np.random.default_rng(0), kinds=WORDS[:1])
    truth: dict[tuple[str, str, int], float] = {}
    for layer in range(N_LAYERS):
        at = many[many["site"] == f"blocks.{layer}.hook_resid_post"]
        for metric in (*HITS, "mrr"):
            sums = at["reciprocal_rank" if metric == "mrr" else metric] / made.patches
            inside, outside = (float(sums[at["place"] == place].mean()) for place in ("inside", "outside"))
            truth |= {("inside", metric, layer): inside, ("difference", metric, layer): inside - outside}
    return truth


def lens_lines(regime: str, trials: list[Trial]) -> list[Line]:
    """Coverage of scores, of differences and of the best layer's score; how often a layer is named in noise."""
    rows, made = pd.DataFrame(trials), LENSES[regime]
    if not made.effect:
        return [line("best layer named", regime, rows["named"], (0.0, LEVEL[1]))]
    truth = lens_truth(made)
    found = [line("power: best layer named", regime, rows["named"], (0.0, 1.0))]
    for place in ("inside", "difference"):
        for metric in ("hit@1", "hit@10", "mrr"):
            for layer in (0, PEAK):
                name = f"{place} {metric} {layer}"
                hits = covered(rows[f"{name} lower"], rows[f"{name} upper"], truth[(place, metric, layer)])
                found.append(line(f"{metric}, {place}, layer {layer}", regime, hits))
    chosen = [truth[("inside", "hit@10", int(layer))] for layer in rows["best"]]
    hits = covered(rows["lower"], rows["upper"], np.array(chosen))
    found.append(line("hit@10 at the best layer", regime, hits))
    return [*found, line("hit@10 at the best layer, where named", regime, hits[rows["named"] == 1])]


def run(kind: str, regime: str, trials: int) -> list[Line]:
    """The lines of a regime; trial i has seed i."""
    torch.set_num_threads(1)
    trial, lines = _RUN[kind]
    made = (GEOMETRY | LENSES)[regime]
    if regime in GEOMETRY and GEOMETRY[regime].layers:
        trials = max(trials // 3, 1)  # eight pairs of views each
    return lines(
        regime, [trial(made, np.random.default_rng([seed, zlib.crc32(regime.encode())])) for seed in range(trials)]
    )


_RUN: Mapping[str, tuple[Callable[..., Trial], Callable[[str, list[Trial]], list[Line]]]] = {
    "geometry": (geometry_trial, geometry_lines), "lenses": (lens_trial, lens_lines),
}  # fmt: skip


def main() -> None:
    """Run the simulation and write a record."""
    trials, size, out, parts = simulation(__doc__, TRIALS, parts=("geometry", "lenses"))
    jobs = [(part, regime) for part in parts for regime in (GEOMETRY if part == "geometry" else LENSES)]
    lines: list[Line] = []
    with ProcessPoolExecutor(2) as pool:
        waiting = [pool.submit(run, kind, regime, trials) for kind, regime in jobs]
        for number, ((_, regime), done) in enumerate(zip(jobs, waiting, strict=True), 1):
            print(f"{number}/{len(jobs)} {regime}", flush=True)
            lines += done.result()
            print("; ".join(f"{one.what} {one.share:.3f}" for one in done.result()), flush=True)
    title = "Coverage of the intervals of geometry and lenses, and what is found in noise"
    facts: dict[str, object] = {"trials": trials, **machine("cpu")}
    write_lines(lines, title, facts, __doc__, out, f"calibration-of-instruments-{size}")


if __name__ == "__main__":
    main()
