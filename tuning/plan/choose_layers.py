"""Choose a layer band from the table of a probe or patch run: ``choose_layers(run, n_layers)``, the spec ``auto:RUN``.

The band is the shortest one that holds most of the evidence. Rule and evidence are returned with it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from figures.effects import fraction_name, with_effect
from tasks.errors import UserError

# The share of the evidence that a band must hold. With much more, one noisy layer far away stretches the band.
_COVERED = 0.8
_PROBE_COLUMNS = {"part", "name", "layer", "target", "split", "score", "chance"}
_PATCH_COLUMNS = {"op", "site", "layer", "tokens", "recovered"}
_METRICS = ("logit_difference", "log_prob", "probability", "accuracy")  # the most sensitive first; kl has no direction


class Chosen(NamedTuple):
    """A chosen band.

    Args:
        layers: The band.
        rule: The rule, in one sentence.
        evidence: Columns ``layer, evidence, chosen``; the evidence sums to 1.
    """

    layers: tuple[int, ...]
    rule: str
    evidence: pd.DataFrame


class _Evidence(NamedTuple):
    by_layer: NDArray[np.float64]
    what: str


def choose_layers(run: Path, n_layers: int) -> Chosen:
    """The shortest band of layers that holds 80 % of a run's evidence; among equally short ones the one with most.

    In a probe run, the evidence of a layer is the gain in the cross-validated score of ``resid_post`` over the best
    layer below (for the first layer: over the model's input, if it was probed), averaged over targets.

    In a patch run, the evidence is, averaged over groups of positions:

    - the change of the effect across the layer, if the residual stream was patched, or all layers up to or from the
      layer were changed;
    - the size of the effect, if each cell changes a part of one layer (an attention pattern, an output).

    The effect is the recovered fraction if the patched run starts from the corrupt one, and the lost fraction if it
    starts from the clean one. It is computed from the logit difference if the run has it, and from groups of image
    tokens (``image``, ``image->last``) if there are any.

    Args:
        run: The run directory, or its ``results.csv``.
        n_layers: Number of layers of the model.

    Raises:
        UserError: If there is no such table, the model has another depth, or no layer has evidence.
    """
    path = run / "results.csv" if run.is_dir() else run
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"auto must name a finished run of probe-sweep or patch-sweep, got {str(run)!r} ({error}). Check the path."
        ) from error
    if set(table.columns) >= _PROBE_COLUMNS:
        found = _probe_evidence(table, n_layers, run)
    elif set(table.columns) >= _PATCH_COLUMNS:
        found = _patch_evidence(table, n_layers, run)
    else:
        raise UserError(f"auto must name a run of probe-sweep or patch-sweep, got {str(run)!r} with other columns.")
    total = found.by_layer.sum()
    if not total > 0:
        raise UserError(f"auto must find evidence at some layer, got none in {str(run)!r}. Name the layers yourself.")
    shares = found.by_layer / total
    sums = np.concatenate([[0.0], np.cumsum(shares)])
    bands = [
        (stop - start, -(sums[stop] - sums[start]), start)
        for start in range(n_layers)
        for stop in range(start + 1, n_layers + 1)
        if sums[stop] - sums[start] >= _COVERED - 1e-9
    ]
    length, held, start = min(bands)
    band = tuple(range(start, start + length))
    named = f"layers {band[0]}-{band[-1]} hold" if length > 1 else f"layer {band[0]} holds"
    rule = f"shortest band with at least {_COVERED:.0%} of the evidence ({found.what}): {named} {-held:.0%}"
    chosen = [layer in band for layer in range(n_layers)]
    return Chosen(band, rule, pd.DataFrame({"layer": range(n_layers), "evidence": shares, "chosen": chosen}))


def describe_choice(run: Path, n_layers: int) -> str:
    """The rule, the band and the evidence by layer, as lines of text."""
    chosen = choose_layers(run, n_layers)
    rows = [
        f"  layer {layer:>2} {share:6.1%} {'#' * round(60 * share)}{' <' if layer in chosen.layers else ''}"
        for layer, share in enumerate(chosen.evidence["evidence"].astype(float).tolist())
    ]
    return "\n".join([f"auto: {chosen.rule}", *rows])


def _probe_evidence(table: pd.DataFrame, n_layers: int, run: Path) -> _Evidence:
    blocks = table[(table["part"] == "language_model") & (table["split"] == "cv") & table["layer"].notna()]
    after = blocks[blocks["name"] == "resid_post"]
    entry = blocks[(blocks["name"] == "resid_pre") & (blocks["layer"] == 0)].groupby("target")["score"].mean()
    _check_depth(after["layer"], n_layers, run)
    gains = []
    for target, rows in after.groupby("target"):
        floor = float(rows["chance"].iloc[0])
        start = max(floor, float(entry.get(target, floor)))
        best = np.maximum.accumulate(np.concatenate([[start], _by_layer(rows, "score", n_layers)]))
        gains.append(np.diff(best))
    names = ", ".join(map(str, after["target"].unique()))
    return _Evidence(
        np.mean(gains, axis=0), f"gain in cross-validated probe score over the layers below, mean of {names}"
    )


def _patch_evidence(table: pd.DataFrame, n_layers: int, run: Path) -> _Evidence:
    rows = table[table["layer"].notna() & table["recovered"].notna()]
    metric = ""
    if "metric" in rows:
        present = set(rows["metric"])
        metric = next((name for name in _METRICS if name in present), "")
        rows = rows[rows["metric"] == metric] if metric else rows
    groups = rows["tokens"].astype(str)
    of_image = groups.str.fullmatch(r"image(->.*)?")
    rows = rows[of_image] if of_image.any() else rows
    _check_depth(rows["layer"], n_layers, run)
    found = []
    keys = [key for key in ("op", "tokens", "name", "head") if key in rows]
    for _, cells in rows.groupby(keys, dropna=False):
        effect = _by_layer(with_effect(cells), "effect", n_layers)
        found.append(np.abs(_across(cells, effect, n_layers)))
    changed = any(_is_cumulative(cells, n_layers) for _, cells in rows.groupby(keys, dropna=False))
    ops = ", ".join(map(str, rows["op"].unique()))
    tokens = ", ".join(str(group) for group in rows["tokens"].dropna().unique())
    what = f"{'change' if changed else 'size'} of the {fraction_name(rows)}"
    return _Evidence(
        np.mean(found, axis=0),
        what + (f" of the {metric}" if metric else "") + f" under {ops}" + (f" of {tokens}" if tokens else ""),
    )


def _across(cells: pd.DataFrame, effect: NDArray[np.float64], n_layers: int) -> NDArray[np.float64]:
    """The evidence of each layer: the change of the effect across it, or the effect itself."""
    if not _is_cumulative(cells, n_layers):
        return effect
    entering = _ends(cells, n_layers) == "onward" or cells["site"].astype(str).str.contains("resid_pre").all()
    if _ends(cells, n_layers) == "up-to":
        return np.diff(np.concatenate([[0.0], effect]))  # with no layer changed the effect is 0
    if entering:
        return np.diff(np.concatenate([effect, [0.0]]))  # past the last block the effect is 0
    return np.diff(np.concatenate([effect[:1], effect]))  # after a block: its change of the effect before it


def _is_cumulative(cells: pd.DataFrame, n_layers: int) -> bool:
    stream = cells["site"].astype(str).str.contains("hook_resid").all() and (cells["op"] != "skip").all()
    return bool(stream) or _ends(cells, n_layers) is not None


def _ends(cells: pd.DataFrame, n_layers: int) -> str | None:
    """``up-to`` if windows run from the first layer to the cell's, ``onward`` if from there to the last, else None."""
    if "window" not in cells:
        return None
    parts = cells["window"].astype(str).str.extract(r"^(\d+)(?:-(\d+))?$")
    start, stop = parts[0].astype(float), parts[1].fillna(parts[0]).astype(float)
    layer = cells["layer"].astype(float)
    if (start == 0).all() and (stop == layer).all():
        return "up-to"
    if (start == layer).all() and (stop == n_layers - 1).all():
        return "onward"
    return None


def _by_layer(rows: pd.DataFrame, column: str, n_layers: int) -> NDArray[np.float64]:
    """Means by layer; missing layers are interpolated linearly."""
    means = rows.groupby("layer")[column].mean().reindex(range(n_layers)).interpolate(limit_direction="both")
    return np.asarray(means.to_numpy(dtype=float), dtype=float)


def _check_depth(layers: "pd.Series[float]", n_layers: int, run: Path) -> None:
    if layers.empty or int(layers.max()) >= n_layers or layers.nunique() < 2:
        found = "none" if layers.empty else f"layers {int(layers.min())} to {int(layers.max())}"
        raise UserError(
            f"auto must name a run over several of the model's {n_layers} layers, got {found} in {str(run)!r}. "
            "Run the sweep on this model, on all layers."
        )
