"""Choose a layer band from the table of a probe or patch run: ``choose_layers(run, n_layers)``, the spec ``auto:RUN``.

The band is the shortest one that holds most of the evidence. Rule and evidence are returned with it. Only sites and
cells that are significant after correction for the choice among all of the run (``p_max``) are evidence. Tables from
before ``p_max`` hold false discovery rates in its place; the rule then says so.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from figures.effects import SIGNIFICANT, as_text, fraction_name, of_earlier_version, tested_by, with_effect
from figures.layer_axis import layers_of
from tasks.checksums import check_whole
from tasks.errors import UserError
from tasks.files import check_regular, is_folder

# The share of the evidence that a band must hold. With much more, one noisy layer far away stretches the band.
_COVERED = 0.8
_PROBE_COLUMNS = {"part", "name", "layer", "target", "split", "score", "chance"}
_PATCH_COLUMNS = {"op", "site", "layer", "tokens", "recovered"}
_METRICS = ("logit_difference", "log_prob", "probability", "accuracy")  # the most sensitive first; kl has no direction


class Chosen(NamedTuple):
    """A chosen band."""

    layers: tuple[int, ...]
    """The band."""
    rule: str
    """How it was chosen, in one sentence."""
    evidence: pd.DataFrame
    """Columns ``layer, evidence, chosen``; the evidence sums to 1."""


def choose_layers(run: Path, n_layers: int) -> Chosen:
    """Choose the shortest band of layers with 80 % of a run's evidence; of equally short ones, that with the most.

    In a probe run, the evidence of a layer is how much the cross-validated score of ``resid_post`` exceeds the best
    score below (for layer 0: that of the model's input, if it was probed), averaged over targets.

    In a patch run, it is the size of the effect (the recovered or lost fraction), averaged over groups of positions.
    If the residual stream was patched, or windows run from layer 0 or to the last layer, it is the change of the effect
    across the layer. Groups of image tokens (``image``, ``image->last``) and the logit difference are used alone if the
    run has them.

    The choice among many layers must not be one of noise: the score of a site that is not significant after correction
    for the choice among all sites (``p_max``) counts as chance, and the effect of such a cell as 0. A table from before
    ``p_max`` is read by its false discovery rates (``q``, ``p_adjusted``), which are not corrected for the choice; the
    rule says so.

    Args:
        run: The run directory, or its ``results.csv``.
        n_layers: Number of layers of the model.

    Raises:
        UserError: If there is no such table, the model has another depth, or no site or cell is significant.
    """
    path = run / "results.csv" if is_folder(run) else run
    check_whole(path, advice="Start the command that wrote it again: it is made anew.")
    try:
        check_regular(path)
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"auto must name a finished run of probe-sweep or patch-sweep, got {str(run)!r} ({error}). Check the path."
        ) from error
    tested = tested_by(table)
    if tested is not None and set(table.columns) >= _PROBE_COLUMNS:
        by_layer, what = _probe_evidence(table, n_layers, run)
    elif tested is not None and set(table.columns) >= _PATCH_COLUMNS:
        by_layer, what = _patch_evidence(table, n_layers, run)
    else:
        raise UserError(
            f"auto must name a run of probe-sweep or patch-sweep, got {str(run)!r} with other columns. "
            "Run the sweep again if its table holds no corrected p-values."
        )
    total = by_layer.sum()
    if not total > 0:
        correction = ", corrected for the choice among all" if tested == "p_max" else ""
        raise UserError(
            f"auto must find a layer that is significant{correction} ({tested} < {SIGNIFICANT}), got none in "
            f"{str(run)!r}. Use more examples, or name the layers yourself."
        )
    shares = by_layer / total
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
    rule = f"shortest band with at least {_COVERED:.0%} of the evidence ({what}): {named} {-held:.0%}"
    rule += of_earlier_version(table)
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


def _is_significant(rows: pd.DataFrame) -> "pd.Series[bool]":
    return rows[tested_by(rows)] < SIGNIFICANT


def _probe_evidence(table: pd.DataFrame, n_layers: int, run: Path) -> tuple[NDArray[np.float64], str]:
    """The evidence of each layer, and what it is in words."""
    blocks = table[(table["part"] == "language_model") & (table["split"] == "cv") & table["layer"].notna()]
    blocks = blocks.assign(score=blocks["score"].where(_is_significant(blocks), blocks["chance"]))
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
    return np.mean(gains, axis=0), f"gain in cross-validated probe score over the layers below, mean of {names}"


def _patch_evidence(table: pd.DataFrame, n_layers: int, run: Path) -> tuple[NDArray[np.float64], str]:
    """The evidence of each layer, and what it is in words."""
    rows = table[table["layer"].notna() & table["recovered"].notna()]
    metric = next((name for name in _METRICS if name in set(rows.get("metric", ()))), "")
    if metric:
        rows = rows[rows["metric"] == metric]
    of_image = rows["tokens"].astype(str).str.fullmatch(r"image(->.*)?")
    rows = rows[of_image] if of_image.any() else rows
    _check_depth(rows["layer"], n_layers, run)
    keys = [key for key in ("op", "tokens", "name", "head") if key in rows]
    found, kind = [], "size"
    for _, cells in rows.groupby(keys, dropna=False):
        found_effect = with_effect(cells)
        found_effect["effect"] = found_effect["effect"].where(_is_significant(cells), 0.0)
        effect = _by_layer(found_effect, "effect", n_layers)
        sites, fixed_end = cells["site"].astype(str), _fixed_end(cells, n_layers)
        if fixed_end is None and not (sites.str.contains("hook_resid").all() and (cells["op"] != "skip").all()):
            found.append(np.abs(effect))
            continue
        kind = "change"
        if fixed_end == "first":
            effects = [0.0, *effect]  # with no layer changed the effect is 0
        elif fixed_end == "last" or sites.str.contains("resid_pre").all():
            effects = [*effect, 0.0]  # after the last block the effect is 0
        else:
            effects = [effect[0], *effect]
        found.append(np.abs(np.diff(effects)))
    ops = ", ".join(map(str, rows["op"].unique()))
    tokens = ", ".join(map(str, rows["tokens"].dropna().unique()))
    what = f"{kind} of the {fraction_name(rows)}" + (f" of the {metric}" if metric else "")
    return np.mean(found, axis=0), what + f" under {ops}" + (f" of {tokens}" if tokens else "")


def _fixed_end(cells: pd.DataFrame, n_layers: int) -> str | None:
    """``first`` if every window starts at layer 0, ``last`` if every window ends at the last layer, else None."""
    windows = as_text(cells).get("window", pd.Series(dtype=str))
    if windows.empty or not windows.all():
        return None
    both = [(layers_of(window), int(layer)) for window, layer in zip(windows, cells["layer"], strict=True)]
    if all(layers == list(range(layer + 1)) for layers, layer in both):
        return "first"
    return "last" if all(layers == list(range(layer, n_layers)) for layers, layer in both) else None


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
