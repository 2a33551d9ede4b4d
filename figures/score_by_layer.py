"""Score by layer, from the vision tower through the projector to the language model, on one axis.

``draw_score_by_layer(results)`` takes the table of a probe sweep (``docs/results.md``).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from figures.layer_axis import ENTRY, PARTS, Span, belongs, main_name, place_parts, stage_ticks, steps_of
from figures.panels import draw_band, draw_level, open_panels, stride
from figures.style import COLOURS, LINES, OPEN, Panels, Width

_LOWEST = -1.0  # lowest score that is drawn
_TITLES = {"vision_tower": "vision\ntower", "projector": "projector", "language_model": "language model"}


def draw_score_by_layer(
    results: pd.DataFrame,
    *,
    name: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Probe score by layer, one panel for each target.

    Blue, filled: cross-validated score with its 95 % interval over groups (n in each panel). Brown, open: the same
    probes on the transfer split (in the embedded data: drawings that training did not use). Green, dash-dotted: the
    control task (same activations, random labels for each type). Violet: probes of a randomly initialised model.
    Dashed: a constant answer. Dotted: raw pixels. Below the panel layers count from 0; above it depth runs from 0 to 1
    in each part. Short parts are stretched.

    ``name`` is the block activation to draw; by default the one with the most layers. The other arguments are described
    in ``figures.panels``.

    Raises:
        ValueError: If the table contains no score of any site, or ``axes`` are not one for each target.

    Example:
        >>> from figures import draw_score_by_layer, example_table
        >>> draw_score_by_layer(example_table("score_by_layer_smol"))[0].get_title("left")
        'kind  (object tokens, n = 200)'
    """
    sites = results[results["part"].isin(PARTS)]
    if sites.empty:
        raise ValueError("results must contain at least one site, got none. Run probe-sweep first.")
    name = name or main_name(sites)
    sites = sites[belongs(sites, name)]
    spans = place_parts(sites)
    targets = [str(target) for target in dict.fromkeys(sites["target"])]
    with open_panels(
        axes, targets, width=width, columns=1 if width == "one" else 2, heights=2.15, extra=0.75, title=title,
        default_title=f"{sites['model'].iloc[0]}: what probes read from {name}, layer by layer", legend=legend,
    ) as opened:  # fmt: skip
        for number, (panel, target) in enumerate(zip(opened.axes, targets, strict=True)):
            _draw_panel(panel, sites[sites["target"] == target], results[results["target"] == target], spans)
            if not opened.own or number + opened.columns >= len(targets):
                panel.set_xlabel("layer, from 0 (above: depth, 0 to 1)")
    return opened.axes


def _draw_panel(panel: Axes, sites: pd.DataFrame, all_rows: pd.DataFrame, spans: Sequence[Span]) -> None:
    validated = sites[sites["split"] == "cv"]
    transferred = sites[sites["split"] != "cv"]
    others = list(dict.fromkeys(transferred["split"]))
    for span in spans:
        _curve(panel, validated, span, "score", "score", "score (95 % interval)", band=True)
        for split in others:
            rows = transferred[transferred["split"] == split]
            _curve(panel, rows, span, "score", "transfer", f"score on {split!r} split", band=True)
        _curve(panel, validated, span, "control", "control", "control task")
        _curve(panel, validated, span, "random_init", "random_init", "randomly initialised model")
        panel.axvspan(span.left - 0.5, span.right + 0.5, color="#000000", alpha=0.035, linewidth=0)
    level = float(validated["chance"].iloc[0])
    draw_level(panel, level, "chance", "chance (constant answer)")
    pixels = all_rows[(all_rows["part"] == "pixels") & (all_rows["split"] == "cv")]
    if not pixels.empty:
        panel.axhline(
            float(pixels["score"].iloc[0]), color=COLOURS["pixels"], linestyle=LINES["pixels"][0], linewidth=1.5,
            label="raw pixels",
        )  # fmt: skip
    target, metric = str(validated["target"].iloc[0]), str(validated["metric"].iloc[0]).replace("_", " ")
    tokens = str(validated["tokens"].iloc[0])
    panel.set_title(f"{target}  ({tokens} tokens, n = {int(validated['n'].max())})", loc="left", pad=33)
    panel.set_ylabel(metric)
    columns = ["score", "lower", "upper", "control", "random_init"]
    shown = np.append(sites[columns].to_numpy(dtype=float).ravel(), level)
    # R2 has no lower bound: one bad probe would flatten all curves
    panel.set_ylim(max(_LOWEST, min(-0.02, np.nanmin(shown) - 0.05)), max(1.06, np.nanmax(shown) + 0.06))
    if np.nanmin(sites["score"].to_numpy(dtype=float)) < _LOWEST:
        panel.text(0.01, 0.02, f"some scores lie below {_LOWEST:g}", transform=panel.transAxes, fontsize=7)
    _draw_axis(panel, sites, spans)


def _curve(
    panel: Axes, rows: pd.DataFrame, span: Span, column: str, concept: str, label: str, *, band: bool = False
) -> None:
    rows = rows[(rows["part"] == span.part) & rows[column].notna()]
    if rows.empty:
        return
    order = steps_of(rows).sort_values()
    rows = rows.loc[order.index]
    places = order.to_numpy() * span.scale + span.offset
    colour, (dashes, marker) = COLOURS[concept], LINES[concept]
    panel.plot(
        places, rows[column], color=colour, linestyle=dashes, marker=marker or ("o" if len(rows) == 1 else ""),
        markerfacecolor="white" if concept in OPEN else colour, markeredgewidth=0.7, label=label,
        zorder=3 if band else 2,
    )  # fmt: skip
    if band:
        draw_band(panel, places, rows, colour, zorder=1)


def _draw_axis(panel: Axes, sites: pd.DataFrame, spans: Sequence[Span]) -> None:
    left, right = spans[0].left - 0.9, spans[-1].right + 0.9
    panel.set_xlim(left, right)
    lower: list[tuple[float, str]] = []
    upper: list[tuple[float, str]] = []
    for span in spans:
        rows = sites[sites["part"] == span.part]
        lower += [(step * span.scale + span.offset, text) for step, text in _ticks(panel, rows, span, right - left)]
        upper += _depth_ticks(rows, span)
        panel.annotate(
            _TITLES[span.part], ((span.left + span.right) / 2, 1.0), xytext=(0, 14), textcoords="offset points",
            xycoords=panel.get_xaxis_transform(), ha="center", va="bottom", fontsize=7, color="#444444",
            linespacing=0.95,
        )  # fmt: skip
    panel.xaxis.set_major_locator(FixedLocator([place for place, _ in lower]))
    panel.set_xticklabels([text for _, text in lower])
    for text in panel.get_xticklabels():
        if not text.get_text().lstrip("-").isdigit():
            text.set(rotation=60, horizontalalignment="right", rotation_mode="anchor")
    top = panel.secondary_xaxis("top")
    top.xaxis.set_major_locator(FixedLocator([place for place, _ in upper]))
    top.set_xticklabels([text for _, text in upper], fontsize=6.5, color="#666666")
    top.tick_params(length=2, pad=1, color="#999999")
    top.spines["top"].set_visible(False)


def _ticks(panel: Axes, rows: pd.DataFrame, span: Span, width: float) -> list[tuple[float, str]]:
    if span.part == "projector":
        return stage_ticks(rows)
    numbered = sorted({int(layer) for layer in rows["layer"].dropna()})
    every = stride(panel, [str(layer) for layer in numbered], width / span.scale)
    ticks = [(float(layer), str(layer)) for layer in numbered[::every]]
    if (steps_of(rows) == ENTRY).any():
        ticks = [(ENTRY, "input"), *ticks[1 if every > 1 else 0 :]]
    return ticks


def _depth_ticks(rows: pd.DataFrame, span: Span) -> list[tuple[float, str]]:
    """Places and labels of depth 0, 0.5 and 1, interpolated from the rows; none for parts of one or two steps."""
    steps = steps_of(rows).to_numpy()
    depth = rows["depth"].to_numpy(dtype=float)
    if span.part == "projector" or len(np.unique(steps)) < 3:
        return []
    order = np.argsort(steps)
    wanted = [value for value in (0.0, 0.5, 1.0) if depth.min() - 1e-9 <= value <= depth.max() + 1e-9]
    placed = np.interp(wanted, depth[order], steps[order])
    return [
        (float(place) * span.scale + span.offset, f"{value:g}") for place, value in zip(placed, wanted, strict=True)
    ]
