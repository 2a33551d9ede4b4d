"""Which blocks of the language model a layer spec means: ``parse_layers("6-16", n_layers)``, and ``auto:RUN``.

Layers count from 0 and ranges are inclusive. ``choose_layers`` reads the table of a probe or patch run and takes the
shortest band that holds most of the evidence; the evidence comes back with it, so that the choice can be checked.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from records.errors import BadInput

SPECS = "all, none, 6-16, 3,5,9, every:4, first:8, last:8, middle:0.33, random:8@0, auto:RUN"
# The share of the evidence that a chosen band must hold. Much more and one noisy layer far away stretches the band.
_COVERED = 0.8
_PROBE_COLUMNS = {"part", "name", "layer", "target", "split", "score", "chance"}
_PATCH_COLUMNS = {"op", "site", "layer", "recovered"}


class Chosen(NamedTuple):
    """A band chosen from a table.

    Args:
        layers: The band.
        rule: How it was chosen, in one sentence.
        evidence: Columns ``layer, evidence, chosen``; the evidence sums to 1.
    """

    layers: tuple[int, ...]
    rule: str
    evidence: pd.DataFrame


def parse_layers(spec: str, n_layers: int) -> tuple[int, ...]:
    """The layers that ``spec`` names, in ascending order.

    Args:
        spec: ``all``; ``none``; layers and inclusive ranges (``3,5,9``, ``6-16``, ``0-3,28-31``); ``every:k`` (0, k,
            2k, ...); ``first:k``; ``last:k``; ``middle:f`` (the share f of all layers, centred); ``random:k@seed`` (k
            different layers); ``auto:RUN`` (``choose_layers`` on a run directory of probe-sweep or patch-sweep).
        n_layers: How many the model has.

    Raises:
        BadInput: If the spec is none of these or names a layer that does not exist.
    """
    text = spec.strip()
    if text == "all":
        return tuple(range(n_layers))
    if text == "none":
        return ()
    kind, colon, value = text.partition(":")
    if not colon:
        return _listed(text, n_layers)
    if kind == "auto":
        return choose_layers(Path(value), n_layers).layers
    if kind == "middle":
        share = _number(value, spec)
        if not 0 < share <= 1:
            raise BadInput(f"middle must be a share in (0, 1], got {value}. Write middle:0.33 for the middle third.")
        count = max(1, round(share * n_layers))
        start = (n_layers - count) // 2
        return tuple(range(start, start + count))
    if kind == "random":
        count_text, at, seed = value.partition("@")
        count = _count(count_text, n_layers, spec)
        if not at or not seed.isdecimal():
            raise BadInput(f"random must say how many layers and a seed, got {spec!r}. Write random:8@0.")
        drawn = np.random.default_rng(int(seed)).choice(n_layers, size=count, replace=False)
        return tuple(sorted(int(layer) for layer in drawn))
    if kind in ("every", "first", "last"):
        count = _count(value, n_layers, spec)
        found = {
            "every": range(0, n_layers, count),
            "first": range(count),
            "last": range(n_layers - count, n_layers),
        }
        return tuple(found[kind])
    raise BadInput(f"layers must be one of {SPECS}, got {spec!r}. Layers count from 0 and ranges are inclusive.")


def anchor_band(n_layers: int) -> tuple[int, ...]:
    """Layers 6-16 of 32 at the same relative depth.

    Source: Palacios et al. 2026, "Visual Instruction Tuning Aligns Modalities through Abstraction", arXiv 2606.03871.
    """
    first = round(6 * n_layers / 32)
    return tuple(range(first, max(first + 1, round(17 * n_layers / 32))))


def format_layers(layers: tuple[int, ...], n_layers: int) -> str:
    """The shortest spec of plain numbers that means ``layers``: ``all``, ``none``, or ranges."""
    if not layers:
        return "none"
    if len(layers) == n_layers:
        return "all"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def choose_layers(run: Path, n_layers: int) -> Chosen:
    """The shortest band of layers that holds 80 % of a run's evidence; of equally short ones the one that holds most.

    A probe run's evidence at a layer is how much the cross-validated score of ``resid_post`` gains there over the best
    layer below (the first layer is compared with the model's input, where it was probed), averaged over targets. A
    patch run's evidence is the change of the recovered fraction from one layer to the next where the residual stream
    was patched, and the recovered fraction's size where a layer's own output was changed.

    Args:
        run: The run directory, or its ``results.csv``.
        n_layers: How many layers the model has.

    Raises:
        BadInput: If there is no such table, it belongs to another depth, or it shows no evidence anywhere.
    """
    path = run / "results.csv" if run.is_dir() else run
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"auto must name a finished run of probe-sweep or patch-sweep, got {str(run)!r} ({error}). Check the path."
        ) from error
    if set(table.columns) >= _PROBE_COLUMNS:
        evidence, what = _probe_evidence(table, n_layers, run), "gain in cross-validated probe score, mean over targets"
    elif set(table.columns) >= _PATCH_COLUMNS:
        evidence, what = _patch_evidence(table, n_layers, run), "change of the recovered fraction"
    else:
        raise BadInput(f"auto must name a run of probe-sweep or patch-sweep, got {str(run)!r} with other columns.")
    total = evidence.sum()
    if not total > 0:
        raise BadInput(f"auto must find evidence at some layer, got none in {str(run)!r}. Name the layers yourself.")
    shares = evidence / total
    sums = np.concatenate([[0.0], np.cumsum(shares)])
    bands = [
        (stop - start, -(sums[stop] - sums[start]), start)
        for start in range(n_layers)
        for stop in range(start + 1, n_layers + 1)
        if sums[stop] - sums[start] >= _COVERED - 1e-9
    ]
    length, held, start = min(bands)
    band = tuple(range(start, start + length))
    rule = (
        f"shortest band with at least {_COVERED:.0%} of the evidence ({what}): layers {band[0]}-{band[-1]} hold "
        f"{-held:.0%}"
    )
    chosen = [layer in band for layer in range(n_layers)]
    return Chosen(band, rule, pd.DataFrame({"layer": range(n_layers), "evidence": shares, "chosen": chosen}))


def describe_choice(run: Path, n_layers: int) -> str:
    """The rule, what it chose, and the evidence layer by layer, for people."""
    chosen = choose_layers(run, n_layers)
    rows = [
        f"  layer {layer:>2} {share:6.1%} {'#' * round(60 * share)}{' <' if layer in chosen.layers else ''}"
        for layer, share in enumerate(chosen.evidence["evidence"].astype(float).tolist())
    ]
    return "\n".join([f"auto: {chosen.rule}", *rows])


def _probe_evidence(table: pd.DataFrame, n_layers: int, run: Path) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    blocks = table[(table["part"] == "language_model") & (table["split"] == "cv") & table["layer"].notna()]
    after = blocks[blocks["name"] == "resid_post"]
    entry = blocks[(blocks["name"] == "resid_pre") & (blocks["layer"] == 0)].set_index("target")["score"]
    _check_depth(after["layer"], n_layers, run)
    gains = []
    for target, rows in after.groupby("target"):
        scores = rows.groupby("layer")["score"].mean().reindex(range(n_layers)).interpolate(limit_direction="both")
        floor = float(rows["chance"].iloc[0])
        start = max(floor, float(entry.get(target, floor)))
        best = np.maximum.accumulate(np.concatenate([[start], scores.to_numpy(dtype=float)]))
        gains.append(np.diff(best))
    return np.asarray(np.mean(gains, axis=0), dtype=float)


def _patch_evidence(table: pd.DataFrame, n_layers: int, run: Path) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    rows = table[table["layer"].notna() & table["recovered"].notna()]
    if "tokens" in rows and (rows["tokens"] == "image").any():
        rows = rows[rows["tokens"] == "image"]
    _check_depth(rows["layer"], n_layers, run)
    recovered = rows.groupby("layer")["recovered"].mean().reindex(range(n_layers)).interpolate(limit_direction="both")
    values = recovered.to_numpy(dtype=float)
    if rows["site"].astype(str).str.contains("resid").all():
        return np.asarray(
            np.abs(np.diff(np.concatenate([values, [0.0]]))), dtype=float
        )  # past the last block nothing can be carried on
    return np.asarray(np.abs(values), dtype=float)


def _check_depth(layers: "pd.Series[float]", n_layers: int, run: Path) -> None:
    if layers.empty or int(layers.max()) >= n_layers or layers.nunique() < 2:
        found = "none" if layers.empty else f"layers {int(layers.min())} to {int(layers.max())}"
        raise BadInput(
            f"auto must name a run over several of the model's {n_layers} layers, got {found} in {str(run)!r}. "
            "Run the sweep on this model, on all layers."
        )


def _listed(text: str, n_layers: int) -> tuple[int, ...]:
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise BadInput(
                f"layers must be one of {SPECS}, got {text!r}. Layers count from 0 and ranges are inclusive."
            )
        start, stop = int(match[1]), int(match[2] or match[1])
        if stop < start:
            raise BadInput(f"layers must ascend, got {part.strip()!r}. Write {stop}-{start}.")
        for layer in (start, stop):
            if layer >= n_layers:
                raise BadInput(f"layer must be in [0, {n_layers}), got {layer}. Layers count from 0.")
        layers += range(start, stop + 1)
    if len(set(layers)) < len(layers):
        raise BadInput(f"layers must be named once each, got {text!r}. Leave the repetition out.")
    return tuple(sorted(layers))


def _number(value: str, spec: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadInput(f"layers must be one of {SPECS}, got {spec!r}. A number must follow the colon.") from None


def _count(value: str, n_layers: int, spec: str) -> int:
    number = _number(value, spec)
    if number != int(number) or not 1 <= number <= n_layers:
        raise BadInput(f"{spec.partition(':')[0]} must count layers in [1, {n_layers}], got {value}. See {SPECS}.")
    return int(number)
