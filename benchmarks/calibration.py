"""Measure how often intervals cover the truth, and how often tests find something in noise.

    python -m benchmarks.calibration            # minutes on two cores; goes on after a kill
    python -m benchmarks.calibration --quick    # half a minute, with few trials
    python -m benchmarks.calibration --regimes "R2, groups of 5" --trials 2 --name r2    # some of the regimes

Every interval and every choice that a command prints is tried on simulated data whose truth is known: activations with
a planted direction, values of pairs, right answers of plans. A regime is a number of trials; trial i has seed i. Where
the truth is a share, each trial draws it from a range, since the coverage of any interval for shares jumps with it. The
truth of a cross-validated score is the mean score of its probes on two thousand new examples over all trials.
Finished trials are kept in ``--work`` and not run again.
"""

import argparse
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import norm

from benchmarks.record import heading, machine, options, table, write_record
from figures.effects import with_effect
from interventions.cell_statistics import summarise_cells
from interventions.plan.cells import CellSpec
from interventions.report_table import summarise as summarise_effects
from probes.evaluation.cross_validation import Result, evaluate
from probes.evaluation.folds import plan_folds
from probes.evaluation.selection import select_sites
from probes.fit_sites import COLUMNS
from probes.report_table import NONE, summarise
from records.intervals import mean_intervals, ratio_intervals, share_intervals
from records.manifest import write_atomically
from records.resampling import adjust_p
from tuning.scoring.retention import differences
from tuning.scoring.retention import summarise as summarise_plans

Array = npt.NDArray[np.float64]
Trial = Mapping[str, float]
COVERAGE, LEVEL = (0.92, 0.98), (0.03, 0.06)  # aims: coverage of 95 % intervals, false positives at 5 %
_NOISE = "p of noise below 0.05"
_UNSEEN = 2000  # new examples for the truth of a probe


@dataclass(frozen=True)
class Probing:
    """Activations in which a label moves one direction, and the probes that read it.

    Args:
        n: Examples.
        d: Width.
        gains: How far the label moves its direction, in standard deviations; trials take them in turn.
        classes: Number of classes; 0 for a number.
        group: Examples in a group, which share the label and half of the variance of the activations.
        within: The label differs within groups.
        rare: Share of the second of two classes; None for equal classes.
        probe: Kind of probe.
    """

    n: int
    d: int
    gains: tuple[float, ...]
    classes: int = 2
    group: int = 1
    within: bool = False
    rare: float | None = None
    probe: str = "logistic"


PROBING = {
    "2 classes, n = 200": Probing(200, 32, (0.0, 0.5, 1.0, 2.0)),
    "2 classes, n = 60, d = 128": Probing(60, 128, (0.0, 1.0, 2.0, 4.0)),
    "2 classes, scores near 1": Probing(200, 32, (4.0, 5.0, 6.0)),
    "7 classes, n = 140": Probing(140, 32, (0.0, 2.0, 4.0, 6.0), 7, probe="ridge"),
    "42 classes of 5": Probing(210, 64, (0.0, 2.0, 4.0, 7.0), 42, probe="ridge"),
    "groups of 5": Probing(200, 32, (0.0, 1.0, 2.0, 4.0), group=5),
    "groups of 5, labels within": Probing(200, 32, (0.0, 1.0, 2.0), group=5, within=True),
    "12 groups of 5": Probing(60, 16, (0.0, 1.0, 2.0), group=5),
    "classes 95 to 5": Probing(200, 32, (0.0, 1.0, 2.0), rare=0.05),
    "2 classes, mass mean": Probing(200, 32, (0.0, 1.0, 2.0), probe="mass_mean"),
    "R2, n = 60": Probing(60, 8, (0.0, 0.5, 1.0, 3.0), 0),
    "R2, n = 60, d = 64": Probing(60, 64, (0.0, 0.5, 1.0, 3.0), 0),
    "R2, n = 200, d = 64": Probing(200, 64, (0.0, 0.5, 1.0, 3.0), 0),
    "R2, groups of 5": Probing(200, 16, (0.0, 1.0, 3.0), 0, group=5),
}
N_LAYERS = 30
PLANTED = 12  # the layer in which the planted effect is largest


def draw_probing(made: Probing, gain: float, rng: np.random.Generator) -> tuple[torch.Tensor, Any, Any, Any]:
    """Activations, labels, groups, and True for the new examples, which come last."""
    groups = (made.n + _UNSEEN) // made.group
    group = np.repeat(np.arange(groups), made.group)
    fitted = made.n // made.group
    shared, own = (0.5**0.5, 0.5**0.5) if made.group > 1 else (0.0, 1.0)
    noise = shared * rng.normal(size=(groups, made.d))[group] + own * rng.normal(size=(len(group), made.d))
    if not made.classes:
        label = shared * rng.normal(size=groups)[group] + own * rng.normal(size=len(group))
        moved = label[:, None] * np.eye(made.d)[0]
    else:
        if made.within:
            label = rng.integers(0, 2, len(group))
        elif made.rare is not None:
            label = (rng.random(groups) < made.rare).astype(int)
            label[:fitted] = rng.permutation(np.arange(fitted) < made.rare * fitted)
        else:
            label = np.concatenate([rng.permutation(np.arange(fitted) % made.classes), np.arange(groups - fitted)])
            label = (label % made.classes)[group]
        axes = np.random.default_rng(made.classes).normal(size=(made.classes, made.d)) / made.d**0.5
        moved = (axes if made.classes > 2 else np.eye(2, made.d))[label]
        moved = moved - moved.mean(0) if made.classes > 2 else moved * np.array([0.0, *[1.0] * (made.d - 1)])
    x = torch.from_numpy((noise + gain * moved).astype(np.float32))
    return x, label, group, np.arange(len(group)) >= made.n


def probing_trial(made: Probing, seed: int, name: str) -> Trial:
    """Score, interval, p, and the scores of the same probes on new examples with their interval."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    at = seed % len(made.gains)
    x, label, group, unseen = draw_probing(made, made.gains[at], rng)
    # Half of the new examples are a transfer set of the size of the fitted ones; all give the truth.
    few = np.zeros_like(unseen)
    few[made.n : 2 * made.n] = True
    plan = plan_folds(
        {"y": label}, group, continuous=() if made.classes else ["y"], controls=[], n_permutations=400, seed=seed,
        transfer={"few": few, "rest": unseen & ~few},
    )  # fmt: skip
    found = evaluate(x, plan, probe=made.probe)["y"]
    score, transfer, rest = found.score, found.transfer["few"][found.metric], found.transfer["rest"][found.metric]
    return {
        "gain": at, "score": score.value, "lower": score.lower, "upper": score.upper, "new": rest.value,
        "t_lower": transfer.lower, "t_upper": transfer.upper,
    }  # fmt: skip


def noise_trial(made: Probing, seed: int, name: str) -> Trial:
    """The p of a label that the activations do not show."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x, label, group, unseen = draw_probing(made, 0.0, rng)
    fitted = ~unseen
    plan = plan_folds(
        {"y": label[fitted]}, group[fitted], continuous=() if made.classes else ["y"], controls=[], n_permutations=400,
        seed=seed,
    )  # fmt: skip
    return {"p": evaluate(x[torch.from_numpy(fitted)], plan, probe=made.probe)["y"].p_value}


def layered(seed: int, name: str, *, gain: float, classes: int) -> tuple[list[Result], list[float]]:
    """Results of 30 layers in which the label moves a direction most in layer 12, and their scores on new examples.

    Half of the noise of a layer is that of the layer before, as in a residual stream.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    n, d = 200, 16
    total = n + _UNSEEN
    label = np.arange(total) % 2 if classes else rng.normal(size=total)
    label[:n] = rng.permutation(label[:n])
    unseen = np.arange(total) >= n
    plan = plan_folds(
        {"y": label}, np.arange(total), continuous=() if classes else ["y"], controls=[], n_permutations=400,
        transfer={"new": unseen}, seed=seed,
    )  # fmt: skip
    results, truths = [], []
    noise = rng.normal(size=(total, d))
    for layer in range(N_LAYERS):
        noise = 0.5**0.5 * (noise + rng.normal(size=(total, d)))
        height = gain * np.exp(-0.5 * ((layer - PLANTED) / 4) ** 2)
        x = noise + height * np.eye(d)[0] * label[:, None]
        results.append(evaluate(torch.from_numpy(x.astype(np.float32)), plan, probe="ridge")["y"])
        truths.append(results[-1].transfer["new"][results[-1].metric].value)
    return results, truths


def layer_table(results: list[Result], *, seed: int) -> pd.DataFrame:
    """The cross-validated rows of a probe sweep."""
    selected = select_sites(results, [0] * len(results), seed=seed)
    rows = [
        {
            "part": "language_model", "site": f"blocks.{layer}.hook_resid_post", "layer": layer, "name": "resid_post",
            "target": "y", "split": "cv", "metric": found.metric, "score": found.score.value,
            "lower": found.score.lower, "upper": found.score.upper, "n": found.score.n, "p": found.p_value,
            "chance": 0.5 if found.kind == "class" else found.chance, **chosen._asdict(),
        }
        for layer, (found, chosen) in enumerate(zip(results, selected, strict=True))
    ]  # fmt: skip
    made = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return made.assign(q=adjust_p(made["p"].to_numpy(dtype=float)))


def layers_trial(made: tuple[float, int], seed: int, name: str) -> Trial:
    """What the summary of 30 layers says about peak and onset, and what the uncorrected rule would have said."""
    gain, classes = made
    results, truths = layered(seed, name, gain=gain, classes=classes)
    rows = layer_table(results, seed=seed)
    row = summarise(rows).iloc[0]
    named = row["peak"] != NONE
    best = int(rows["score"].astype(float).argmax())
    return {
        "onset": row["onset"] != NONE, "peak": named, "best": best, "true": truths[best],
        "first": float(row["peak_first"]) if named else np.nan, "last": float(row["peak_last"]) if named else np.nan,
        "height": float(row["score"]), "lower": float(row["lower"]), "upper": float(row["upper"]),
        "raw": float(rows["score"].max()),
        "plain": float(rows["lower"][best] <= truths[best] <= rows["upper"][best]),
        "uncorrected": bool((rows["lower"] > rows["chance"]).any()), "q": bool((rows["q"] < 0.05).any()),
    }  # fmt: skip


Draw = Callable[[np.random.Generator, tuple[int, int]], Array]
# Values of pairs: a logit difference, a KL divergence (skewed, positive), a probability near 1, heavy tails.
VALUES: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(1.0, 1.0, shape), 1.0),
    "exponential": (lambda rng, shape: rng.exponential(1.0, shape), 1.0),
    "beta(4, 1/2)": (lambda rng, shape: rng.beta(4.0, 0.5, shape), 4 / 4.5),
    "t, 5 degrees": (lambda rng, shape: 1.0 + rng.standard_t(5, shape), 1.0),
}
SHARES = {"0.5 to 0.9": (0.5, 0.9), "0.9 to 0.99": (0.9, 0.99)}
PAIRS = (5, 8, 16, 40, 100)


def covered(lower: Any, upper: Any, truth: Any) -> Array:
    """1 where the truth lies inside, 0 where not, NaN without an interval."""
    low, high = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    inside = (low <= truth + 1e-12) & (truth - 1e-12 <= high)
    return np.where(np.isnan(low) | np.isnan(high), np.nan, inside)


def pairs_trials(n: int, trials: int) -> dict[str, Array]:
    """Coverage, trial by trial, of the intervals over ``n`` pairs: means, recovered fractions, shares."""
    rng = np.random.default_rng(n)
    found: dict[str, Array] = {}
    for kind, (draw, truth) in VALUES.items():
        found[f"mean, {kind}"] = covered(*mean_intervals(draw(rng, (trials, n))), truth)
    for kind, between in (
        ("normal", rng.normal(3.0, 1.0, (trials, n))),
        ("wide", rng.normal(2.0, 2.0, (trials, n))),
        ("skewed", rng.lognormal(0.0, 0.7, (trials, n))),
    ):
        gained = 0.5 * between + 0.5 * rng.normal(size=(trials, n)) * np.abs(between)
        found[f"recovered fraction, {kind}"] = covered(*ratio_intervals(gained, between), 0.5)
    for kind, ends in SHARES.items():
        truths = rng.uniform(*ends, trials)
        right = (rng.random((trials, n)) < truths[:, None]).astype(float)
        found[f"share, {kind}"] = covered(*share_intervals(right, np.ones_like(right)), truths)
        # Three answers about each picture, which agree in half of the pictures.
        same = rng.random((trials, n, 1)) < 0.5
        draws = np.where(same, rng.random((trials, n, 1)), rng.random((trials, n, 3)))
        right = (draws < truths[:, None, None]).sum(2).astype(float)
        found[f"share, {kind}, 3 answers a picture"] = covered(*share_intervals(right, np.full_like(right, 3)), truths)
    return found


def cells_trial(made: tuple[int, float], seed: int, name: str) -> Trial:
    """A patch sweep of 30 correlated cells, in one of which the effect is planted: what the summary names."""
    pairs, effect = made
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    table = cell_table(pairs, effect, rng, seed=seed)
    row = summarise_effects(table).iloc[0]
    at = int(row["layer"]) if row["found"] else -1
    truth = effect * np.exp(-0.5 * ((np.arange(N_LAYERS) - PLANTED) / 2) ** 2)
    named = with_effect(table)
    lower, upper = (np.nan if row[end] is None else row[end] for end in ("effect_lower", "effect_upper"))
    return {
        "found": bool(row["found"]), "false_discovery": bool((table["p_adjusted"] < 0.05).any()),
        "alone": float((table["p"] < 0.05).mean()), "right": abs(at - PLANTED) <= 2,
        "covers": float(covered(lower, upper, truth[at])),
        "plain": float(covered(named["effect_lower"][at], named["effect_upper"][at], truth[at])) if at >= 0 else np.nan,
    }  # fmt: skip


def cell_table(pairs: int, effect: float, rng: np.random.Generator, *, seed: int) -> pd.DataFrame:
    """The table of 30 cells over pairs whose clean and corrupt run differ by about 3 logits."""
    corrupt = rng.normal(-1.5, 1.0, pairs)
    clean = corrupt + rng.normal(3.0, 1.0, pairs)
    height = effect * np.exp(-0.5 * ((np.arange(N_LAYERS) - PLANTED) / 2) ** 2)
    noise = rng.normal(size=(N_LAYERS, pairs))
    for layer in range(1, N_LAYERS):
        noise[layer] = 0.5**0.5 * (noise[layer - 1] + noise[layer])
    value = corrupt + height[:, None] * (clean - corrupt) + 0.5 * noise
    specs = [CellSpec("patch", f"blocks.{i}.hook_resid_pre", i, str(i), "image") for i in range(N_LAYERS)]
    return summarise_cells(
        specs, ["logit_difference"], torch.from_numpy(value)[:, None], torch.from_numpy(clean)[None],
        torch.from_numpy(corrupt)[None], model="simulated", unchanged="corrupt", undefined_below=1e-3, seed=seed,
    )  # fmt: skip


def plans_trial(made: tuple[int, float, int], seed: int, name: str) -> Trial:
    """Coverage of scores, retention and differences of two plans, whose seeds differ by 3.7 points."""
    seeds, level, questions = made
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    scenes, spread = 60, 0.037 if level < 0.9 else 0.01
    truths = {"full": level, "band": 0.93 * level}
    rows, words = [], []
    hard = rng.normal(size=scenes)  # scenes that are hard for one plan are hard for the other
    shared = rng.normal(size=(seeds, scenes))
    for plan, truth in truths.items():
        for number in range(seeds):
            rate = np.clip(truth + spread * rng.normal(), 0.01, 0.999)
            own = 0.6**0.5 * hard + 0.2**0.5 * shared[number] + 0.2**0.5 * rng.normal(size=scenes)
            for _ in range(questions):  # the questions about a scene are half as alike as the plans
                asked = 0.5**0.5 * own + 0.5**0.5 * rng.normal(size=scenes) if questions > 1 else own
                right = (asked < norm.ppf(rate)) * 1.0
                rows.append(pd.DataFrame({"plan": plan, "seed": number, "id": np.arange(scenes), "right": right}))
            words.append({"plan": plan, "seed": number, "value": np.log(0.3 * truth) + 0.05 * rng.normal()})
            if seeds == 1:  # the interval is about this seed alone
                truths = truths | {plan: rate}
    answers = pd.concat(rows).assign(condition="seen", family="")
    found = summarise_plans(answers, pd.DataFrame(words)).set_index(["plan", "family"])
    band: Any = found.loc["band", "all"]
    text: Any = found.loc["band", "text"]
    apart = differences(answers, "band").iloc[0]
    mean = np.exp(0.5 * 0.05**2)
    return {
        "score": float(covered(band["score_lower"], band["score_upper"], truths["band"])),
        "retention": float(covered(band["lower"], band["upper"], truths["band"] / truths["full"])),
        "difference": float(covered(apart["lower"], apart["upper"], truths["band"] - truths["full"])),
        "text": float(covered(text["score_lower"], text["score_upper"], 0.3 * truths["band"] * mean)),
        "text retention": float(covered(text["lower"], text["upper"], truths["band"] / truths["full"])),
    }  # fmt: skip


PLANS = {f"{seeds} seed{'s' * (seeds > 1)}, level {level:g}": (seeds, level, 1)
         for level in (0.8, 0.97) for seeds in (1, 2, 3, 5)}  # fmt: skip
PLANS |= {f"{seeds} seed{'s' * (seeds > 1)}, level 0.8, 7 questions a scene": (seeds, 0.8, 7) for seeds in (1, 3)}
LAYERS = {
    "30 layers of noise, 2 classes": (0.0, 2), "30 layers of noise, R2": (0.0, 0),
    "30 layers, weak effect, 2 classes": (0.8, 2), "30 layers, strong effect, 2 classes": (2.0, 2),
    "30 layers, weak effect, R2": (0.4, 0),
    "30 layers, slight effect, 2 classes": (0.5, 2), "30 layers, slight effect, R2": (0.22, 0),
}  # fmt: skip
CELLS = {
    f"30 cells, {pairs} pairs, {'noise' if not effect else f'effect {effect:g}'}": (pairs, effect)
    for pairs in (10, 40) for effect in (0.0, 0.15, 0.5)
}  # fmt: skip
NOISE = {f"{name}, noise": made for name, made in PROBING.items() if made.gains[0] == 0}
_RARE = 4  # times as many trials of a slight effect, which is seldom named
TRIALS = {"probing": 200, "noise": 200, "layers": 60, "cells": 300, "plans": 300}
_RUN: dict[str, tuple[Callable[..., Trial], Mapping[str, Any]]] = {
    "probing": (probing_trial, PROBING), "noise": (noise_trial, NOISE), "layers": (layers_trial, LAYERS),
    "cells": (cells_trial, CELLS), "plans": (plans_trial, PLANS),
}  # fmt: skip


def run_regime(kind: str, name: str, trials: int, work: Path | None) -> list[dict[str, float]]:
    """The first trials of a regime; those in ``work`` are not run again."""
    torch.set_num_threads(1)
    trials *= _RARE if "slight" in name else 1
    path = None if work is None else work / f"{kind}-{zlib.crc32(name.encode()):08x}.json"
    found: list[dict[str, float]] = (
        json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else []
    )
    trial, regimes = _RUN[kind]
    for seed in range(len(found), trials):
        found.append({key: float(value) for key, value in trial(regimes[name], seed, name).items()})
        if path is not None and (len(found) % 20 == 0 or len(found) == trials):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(found).encode())
    return found[:trials]


@dataclass(frozen=True)
class Line:
    """A measured share, with the range that it should lie in."""

    what: str
    """What is measured: an interval, or how often something is found."""
    regime: str
    share: float
    trials: int
    aim: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``ok`` in the range, ``near`` within two standard errors of a share at its end, ``cautious`` or ``misses``.

        Cautious is an interval that covers, or a test that passes over noise, more often than it should.
        """
        low, high = self.aim
        slack = [2 * (end * (1 - end) / max(self.trials, 1)) ** 0.5 for end in self.aim]
        if low <= self.share <= high:
            return "ok"
        if low - slack[0] <= self.share <= high + slack[1]:
            return "near"
        return "cautious" if (self.share > high) == (self.aim == COVERAGE) else "misses"


def line(what: str, regime: str, values: npt.ArrayLike, aim: tuple[float, float] = COVERAGE) -> Line:
    """The share of trials that are not NaN in which something holds."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return Line(what, regime, float(known.mean()) if len(known) else float("nan"), len(known), aim)


def probing_lines(name: str, trials: list[dict[str, float]]) -> list[Line]:
    """Coverage of cross-validated and transfer scores."""
    rows = pd.DataFrame(trials)
    truth = rows.groupby("gain")["new"].transform("mean")
    found = [line("cross-validated score", name, covered(rows["lower"], rows["upper"], truth))]
    # The transfer score is about the fitted probes, whose own truth is their score on the other new examples.
    found.append(line("transfer score", name, covered(rows["t_lower"], rows["t_upper"], rows["new"])))
    return found


def noise_lines(name: str, trials: list[dict[str, float]]) -> list[Line]:
    """How often a probe of noise is significant."""
    return [line(_NOISE, name, pd.DataFrame(trials)["p"] <= 0.05, LEVEL)]


def layer_lines(name: str, trials: list[dict[str, float]]) -> list[Line]:
    """What is named on noise, and how well peak and height are known where there is an effect."""
    rows = pd.DataFrame(trials)
    if "noise" in name:
        return [
            line("onset named", name, rows["onset"], (0.0, LEVEL[1])),
            line("peak named", name, rows["peak"], (0.0, LEVEL[1])),
            line("uncorrected: some interval above chance", name, rows["uncorrected"], (0.0, 1.0)),
        ]
    named = rows[rows["peak"] == 1]
    return [
        line("power: peak named", name, rows["peak"], (0.0, 1.0)),
        line("power of q < 0.05 at some layer", name, rows["q"], (0.0, 1.0)),
        line("place of the peak", name, covered(named["first"], named["last"], PLANTED)),
        line("score at the peak", name, covered(named["lower"], named["upper"], named["true"])),
        line("uncorrected score at the peak", name, named["plain"], (0.0, 1.0)),
    ]


def cell_lines(name: str, trials: list[dict[str, float]]) -> list[Line]:
    """What the summary of a patch sweep names."""
    rows = pd.DataFrame(trials)
    if "noise" in name:
        return [
            line("best cell named", name, rows["found"], (0.0, LEVEL[1])),
            line("p of a cell of noise below 0.05", name, rows["alone"], LEVEL),
        ]
    return [
        line("power: best cell named", name, rows["found"], (0.0, 1.0)),
        line("power of adjusted p < 0.05 in some cell", name, rows["false_discovery"], (0.0, 1.0)),
        line("effect of the best cell", name, rows["covers"]),
        line("uncorrected effect of the best cell", name, rows["plain"], (0.0, 1.0)),
    ]


def plan_lines(name: str, trials: list[dict[str, float]]) -> list[Line]:
    """Coverage of the columns of a comparison; with one seed, for that seed."""
    rows = pd.DataFrame(trials)
    return [line(f"{what} of a plan", name, rows[what]) for what in rows if rows[what].notna().any()]


_LINES = {
    "probing": probing_lines,
    "noise": noise_lines,
    "layers": layer_lines,
    "cells": cell_lines,
    "plans": plan_lines,
}


def measure(
    trials: Mapping[str, int], *, processes: int = 1, work: Path | None = None, regimes: Collection[str] = ()
) -> list[Line]:
    """The lines of the record, of all ``regimes`` if none is named; prints the regimes as they finish."""
    lines = []
    for n in PAIRS if not regimes else ():
        lines += [line(what, f"{n} pairs", values) for what, values in pairs_trials(n, 10 * trials["cells"]).items()]
    noise: list[bool] = []
    jobs = [(kind, name) for kind, (_, made) in _RUN.items() for name in made if not regimes or name in regimes]
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(run_regime, kind, name, trials[kind], work) for kind, name in jobs]
        for number, ((kind, name), done) in enumerate(zip(jobs, waiting, strict=True), 1):
            found = _LINES[kind](name, done.result())
            print(f"{number}/{len(jobs)} {name}: " + "; ".join(f"{x.what} {x.share:.3f}" for x in found), flush=True)
            lines += found
            if kind == "noise":
                noise += [trial["p"] <= 0.05 for trial in done.result()]
    return [*lines, line(_NOISE, "all of the above", noise, LEVEL)] if noise else lines


def rows_of(lines: Iterable[Line]) -> list[tuple[str, ...]]:
    """The lines as rows of a table."""
    return [
        (x.what, x.regime, f"{x.share:.1%}", str(x.trials), f"{x.aim[0]:.0%} to {x.aim[1]:.0%}", x.verdict)
        if x.aim != (0.0, 1.0)
        else (x.what, x.regime, f"{x.share:.1%}", str(x.trials), "", "")
        for x in lines
    ]


def write_lines(lines: Sequence[Line], title: str, facts: Mapping[str, object], doc: str, out: Path, name: str) -> None:
    """Write and print the record of a simulation; its last paragraph is the third of ``doc``."""
    judged = [x for x in lines if x.aim != (0.0, 1.0)]
    counts = {verdict: sum(x.verdict == verdict for x in judged) for verdict in ("ok", "near", "cautious", "misses")}
    text = heading(title, {**counts, **facts})
    text += table(("what", "regime", "share", "trials", "aim", "verdict"), rows_of(lines))
    text += ["", doc.split("\n\n")[2].strip()]
    record = {"machine": {**counts, **facts}, "lines": [x.__dict__ for x in lines]}
    write_record(out, name, record, "\n".join(text))


def main() -> None:
    """Run the simulation, write and print the record."""
    parser: argparse.ArgumentParser = options(__doc__, repeats=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials")
    parser.add_argument("--trials", type=float, default=1.0, help="times as many trials")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"), help="folder of finished trials")
    known = [name for _, made in _RUN.values() for name in made]
    parser.add_argument("--regimes", nargs="+", choices=known, default=(), metavar="NAME", help="only these regimes")
    parser.add_argument("--name", help="name of the record [default: quick or full]")
    given = parser.parse_args()
    size: Literal["quick", "full"] = "quick" if given.quick else "full"
    trials = {kind: int(n * given.trials / (10 if given.quick else 1)) for kind, n in TRIALS.items()}
    lines = measure(trials, processes=given.processes, work=given.work, regimes=given.regimes)
    ran = {kind: n for kind, n in trials.items() if not given.regimes or {*given.regimes} & _RUN[kind][1].keys()}
    facts: dict[str, object] = {"trials": ran, **machine("cpu")}
    title = "Coverage of intervals, and what is found in noise"
    write_lines(lines, title, facts, __doc__, given.out, f"calibration-{given.name or size}")


if __name__ == "__main__":
    main()
