"""Score by layer, from the vision tower through the projector to the language model, on one axis.

``draw_score_by_layer(results)`` takes the table of a probe sweep (``docs/results.md``) and nothing else.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from figures.style import COLOURS, style

PARTS = ("vision_tower", "projector", "language_model")
_TITLES = {"vision_tower": "vision tower", "projector": "projector", "language_model": "language model"}
PROJECTOR_STAGES = ("in", "linear_1", "act", "out")
_GAP = 1.5  # empty steps between two parts
_STAGE_STEP = 1.4  # of the projector: wide enough for its labels, which are words
_MAX_TICKS = 8  # labels an axis part can hold before they touch
_LOWEST = -1.0  # of a score that is drawn
_ENTRY = -1.0  # where the language model's input (resid_pre of block 0) stands: one step before block 0's output


class Span(NamedTuple):
    """Where a part stands on the shared axis: ``offset`` is the place of its layer 0."""

    part: str
    offset: float
    left: float
    right: float


def draw_score_by_layer(results: pd.DataFrame, *, name: str | None = None, title: str | None = None) -> Figure:
    """Probe score by layer, one panel for each target.

    Blue: cross-validated score; its band is the 95 % interval over groups (n in each panel). Orange: the same probes on
    the transfer split (drawings never trained on, in the embedded data). Green: the control task (same activations,
    labels by type at random). Pink: the same probes on a randomly initialised model. Dashed: a constant answer.
    Dotted: raw pixels. Below the axis layers count from 0; above it depth runs from 0 to 1 in each part.

    Args:
        results: The table of a probe sweep.
        name: Which activation of the blocks is drawn; the one with most layers where it is None.
        title: Stands above all panels.

    Raises:
        ValueError: If the table holds no score of any site.
    """
    sites = results[results["part"].isin(PARTS)]
    if sites.empty:
        raise ValueError("results must hold at least one site, got none. Run probe-sweep first.")
    name = name or main_name(sites)
    sites = sites[_belongs(sites, name)]
    spans = place_parts(sites)
    targets = list(dict.fromkeys(sites["target"]))
    with style():
        columns = 1 if len(targets) == 1 else 2
        rows = -(-len(targets) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(5.6 * columns + 0.4, 2.9 * rows + 0.9), squeeze=False, layout="constrained"
        )
        for panel, target in zip(axes.flat, targets, strict=False):
            _draw_panel(panel, sites[sites["target"] == target], results[results["target"] == target], spans)
        for panel in list(axes.flat)[len(targets) :]:
            panel.set_axis_off()
        handles: dict[str, Artist] = {}
        for panel in axes.flat:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(3, len(handles)))
        figure.suptitle(title or f"{sites['model'].iloc[0]}: what probes read from {name}, layer by layer", fontsize=11)
    return figure


def names_in_blocks(results: pd.DataFrame) -> list[str]:
    """The activations of the blocks that the table holds, the one that ``main_name`` picks first."""
    sites = results[results["part"].isin(PARTS)]
    first = main_name(sites)
    others = sites[sites["layer"].notna()]
    others = others[~_belongs(others, first)]
    return [first, *dict.fromkeys(str(name) for name in others["name"])]


def main_name(sites: pd.DataFrame) -> str:
    """The activation of the blocks that has most layers; of equals ``resid_post``, then the first."""
    blocks = sites[sites["layer"].notna()]
    if blocks.empty:
        return str(sites["name"].iloc[0])
    counts = blocks.drop_duplicates(["part", "layer", "name"])["name"].value_counts()
    best = list(counts[counts == counts.max()].index)
    return "resid_post" if "resid_post" in best else str(best[0])


def place_parts(sites: pd.DataFrame) -> list[Span]:
    """Where each part that was probed stands on the shared axis, one step a layer, in the order of the forward pass."""
    spans, cursor = [], 0.0
    for part in PARTS:
        rows = sites[sites["part"] == part]
        if rows.empty:
            continue
        steps = _steps(rows)
        low, high = float(steps.min()), float(steps.max())
        offset = cursor - low
        spans.append(Span(part, offset, cursor, cursor + high - low))
        cursor += high - low + _GAP
    return spans


def _belongs(sites: pd.DataFrame, name: str) -> "pd.Series[bool]":
    """The rows of one curve: the named activation, the projector's stages, and what enters the language model."""
    enters = (sites["part"] == "language_model") & (sites["name"] == "resid_pre") & (sites["layer"] == 0)
    return (sites["name"] == name) | (sites["part"] == "projector") | (enters & (name == "resid_post"))


def _steps(rows: pd.DataFrame) -> "pd.Series[float]":
    """The place of each row in its part, in steps: the layer; for the projector its stage; for its entry, before 0."""
    n_layers = rows["layer"].max()
    last = 0.0 if pd.isna(n_layers) else float(n_layers) + 1.0

    def step(part: str, layer: float, name: str) -> float:
        if part == "projector":
            return _STAGE_STEP * PROJECTOR_STAGES.index(name)
        if np.isnan(layer):
            return last  # the final norm stands behind the last block
        return _ENTRY if name == "resid_pre" and part == "language_model" and layer == 0 else float(layer)

    values = [step(*row) for row in zip(rows["part"], rows["layer"].astype(float), rows["name"], strict=True)]
    return pd.Series(values, index=rows.index, dtype=float)


def _draw_panel(panel: Axes, sites: pd.DataFrame, all_rows: pd.DataFrame, spans: Sequence[Span]) -> None:
    validated = sites[sites["split"] == "cv"]
    transferred = sites[sites["split"] != "cv"]
    others = list(dict.fromkeys(transferred["split"]))
    for span in spans:
        _curve(panel, validated, span, "score", COLOURS["score"], "score (95 % interval)", band=True)
        for split in others:
            rows = transferred[transferred["split"] == split]
            _curve(panel, rows, span, "score", COLOURS["transfer"], f"score on {split!r} split", band=True)
        _curve(panel, validated, span, "control", COLOURS["control"], "control task", marker="")
        _curve(panel, validated, span, "random_init", COLOURS["random_init"], "randomly initialised model", marker="")
        panel.axvspan(span.left - 0.5, span.right + 0.5, color="#000000", alpha=0.035, linewidth=0)
    level = float(validated["chance"].iloc[0])
    panel.axhline(
        level, color=COLOURS["chance"], linestyle=(0, (5, 3)), linewidth=1.0, label="chance (constant answer)"
    )
    pixels = all_rows[(all_rows["part"] == "pixels") & (all_rows["split"] == "cv")]
    if not pixels.empty:
        panel.axhline(
            float(pixels["score"].iloc[0]), color=COLOURS["pixels"], linestyle=":", linewidth=1.4, label="raw pixels"
        )
    target, metric = str(validated["target"].iloc[0]), str(validated["metric"].iloc[0]).replace("_", " ")
    tokens = str(validated["tokens"].iloc[0])
    n = int(validated["n"].max())
    panel.set_title(f"{target}  ({tokens} tokens, n = {n})", loc="left", pad=31)
    panel.set_ylabel(metric)
    columns = ["score", "lower", "upper", "control", "random_init"]
    shown = np.append(sites[columns].to_numpy(dtype=float).ravel(), level)
    # R2 has no lower end: one bad probe would press all curves together at the top
    panel.set_ylim(max(_LOWEST, min(-0.02, np.nanmin(shown) - 0.05)), max(1.02, np.nanmax(shown) + 0.02))
    if np.nanmin(sites["score"].to_numpy(dtype=float)) < _LOWEST:
        panel.text(0.01, 0.02, f"some scores lie below {_LOWEST:g}", transform=panel.transAxes, fontsize=7)
    _draw_axis(panel, sites, spans)


def _curve(
    panel: Axes,
    rows: pd.DataFrame,
    span: Span,
    column: str,
    colour: str,
    label: str,
    *,
    band: bool = False,
    marker: str = "o",
) -> None:
    rows = rows[(rows["part"] == span.part) & rows[column].notna()]
    if rows.empty:
        return
    order = _steps(rows).sort_values()
    rows = rows.loc[order.index]
    places = order.to_numpy() + span.offset
    lonely = "o" if len(rows) == 1 else marker
    panel.plot(places, rows[column], color=colour, marker=lonely, markersize=2.6, label=label, zorder=3 if band else 2)
    if band:
        panel.fill_between(places, rows["lower"], rows["upper"], color=colour, alpha=0.2, linewidth=0, zorder=1)


def _draw_axis(panel: Axes, sites: pd.DataFrame, spans: Sequence[Span]) -> None:
    places: list[float] = []
    labels: list[str] = []
    upper: list[float] = []
    depths: list[str] = []
    transform = panel.get_xaxis_transform()
    for span in spans:
        rows = sites[sites["part"] == span.part]
        for step, label in _ticks(rows, span.part):
            places.append(step + span.offset)
            labels.append(label)
        for place, depth in _depth_ticks(rows, span):
            upper.append(place)
            depths.append(depth)
        panel.text(
            (span.left + span.right) / 2,
            1.115,
            _TITLES[span.part],
            transform=transform,
            ha="center",
            va="bottom",
            fontsize=8,
            color="#444444",
        )
    panel.set_xlim(spans[0].left - 0.9, spans[-1].right + 0.9)
    panel.xaxis.set_major_locator(FixedLocator(places))
    panel.set_xticklabels(labels, fontsize=7.5)
    for text in panel.get_xticklabels():
        if not text.get_text().lstrip("-").isdigit():
            text.set_rotation(60)
            text.set_horizontalalignment("right")
            text.set_rotation_mode("anchor")
    panel.set_xlabel("layer, from 0 (above: depth in the part, from 0 to 1)")
    top = panel.secondary_xaxis("top")
    top.xaxis.set_major_locator(FixedLocator(upper))
    top.set_xticklabels(depths, fontsize=7, color="#666666")
    top.tick_params(length=2, pad=1, color="#999999")
    top.spines["top"].set_visible(False)


def _ticks(rows: pd.DataFrame, part: str) -> list[tuple[float, str]]:
    if part == "projector":
        present = [stage for stage in PROJECTOR_STAGES if stage in set(rows["name"])]
        return [(_STAGE_STEP * PROJECTOR_STAGES.index(stage), stage.replace("_", " ")) for stage in present]
    steps = _steps(rows)
    layers = sorted({int(step) for step in steps if step >= 0})
    numbered = sorted({int(layer) for layer in rows["layer"].dropna()})
    stride = max(1, -(-len(numbered) // _MAX_TICKS))
    ticks = [(float(layer), str(layer)) for layer in numbered[::stride]] if layers else []
    if (steps == _ENTRY).any():
        ticks = [(_ENTRY, "input"), *ticks[1 if len(numbered) > _MAX_TICKS else 0 :]]
    return ticks


def _depth_ticks(rows: pd.DataFrame, span: Span) -> list[tuple[float, str]]:
    """Places of depth 0, 0.5 and 1, read off the rows' own depths; for a part of one row none but its own."""
    steps = _steps(rows).to_numpy()
    depth = rows["depth"].to_numpy(dtype=float)
    if span.part == "projector" or len(np.unique(steps)) < 3:
        return []
    order = np.argsort(steps)
    wanted = [value for value in (0.0, 0.5, 1.0) if depth.min() - 1e-9 <= value <= depth.max() + 1e-9]
    placed = np.interp(wanted, depth[order], steps[order])
    return [(float(place) + span.offset, f"{value:g}") for place, value in zip(placed, wanted, strict=True)]
