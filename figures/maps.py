"""Where a model uses what: effects of interventions by layer and token group, head, patch, and as curves.

``draw_run_figures(results)`` takes the table of a patch sweep (``docs/results.md``), and a picture for patches, and
gives the figures that fit it by name, the main one first.

Maps show the recovered fraction where the corrupt run was changed (0: as corrupt, 1: as clean), and the lost fraction,
1 - recovered, where the clean run was (0: as clean, 1: as corrupt). So 0 is always no effect.
"""

import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from figures.style import COLOURS, DIVERGING, SERIES, style

SIGNIFICANT = 0.05  # of p_adjusted; such cells bear a dot
_WIDEST = 2.0  # of a fraction: beyond it colours say no more, and the bar has a pointed end
_LEAST = 0.1  # half of the range at least: below it a map without effects would be all colour
_PATCH = re.compile(r"patch\((\d+),(\d+)(?:,0)?\)")
_BY_CURVE = ("knockout", "skip", "transplant")
_METRICS = {
    "logit_difference": "logit difference",
    "log_prob": "log-probability of the answer (nats)",
    "probability": "probability of the answer",
    "kl": "KL divergence from the clean run (nats)",
    "accuracy": "accuracy of the generated answer",
}
_MAX_TICKS = 16  # labels of layers that a panel of the usual width can hold


def draw_run_figures(results: pd.DataFrame, picture: npt.NDArray[np.uint8] | None = None) -> dict[str, Figure]:
    """The figures that fit the table, by name, the main one first.

    Args:
        results: The table of a patch sweep.
        picture: ``H W 3``, what patches are painted on; None for a blank one.

    Raises:
        ValueError: If the table is empty.
    """
    if results.empty:
        raise ValueError("results must hold at least one row, got none. Run patch-sweep first.")
    found: dict[str, Figure] = {}
    op = str(results["op"].iloc[0])
    of_patches = results["tokens"].map(lambda text: _PATCH.fullmatch(str(text)) is not None)
    if of_patches.any() and not results["head"].notna().any():
        found["patch_map"] = draw_patch_map(results[of_patches], picture)
        results = results[~of_patches]
    if op in _BY_CURVE and not results.empty and not results["head"].notna().any():
        found["curves"] = draw_curves(results)
    if op == "transplant" or results.empty:
        return found
    if results["head"].notna().any():
        found["head_map"] = draw_head_map(results)
    else:
        found = {"token_map": draw_token_map(results), **found}
    return found


def draw_token_map(results: pd.DataFrame, *, metric: str | None = None, title: str | None = None) -> Figure:
    """Effect by layer (from 0) and token group, one panel for each activation that was changed.

    Red: the recovered (lost) fraction of the difference between clean and corrupt run; blue: change the other way. A
    dot: p, adjusted over the run, is below 0.05. Grey: undefined, since clean and corrupt do not differ. n: in the
    title.

    Args:
        results: The table of a patch sweep.
        metric: Which; the first of the table where it is None.
        title: Stands above all panels.

    Raises:
        ValueError: If the table has no such row.
    """
    return _draw_grid(results, "tokens", ("part", "name"), metric, title)


def draw_head_map(results: pd.DataFrame, *, metric: str | None = None, title: str | None = None) -> Figure:
    """Effect by layer (from 0) and head, one panel for each activation and token group; read as ``draw_token_map``."""
    return _draw_grid(results[results["head"].notna()], "head", ("part", "name", "tokens"), metric, title)


def draw_patch_map(
    results: pd.DataFrame,
    picture: npt.NDArray[np.uint8] | None = None,
    *,
    metric: str | None = None,
    title: str | None = None,
) -> Figure:
    """Effect of each patch of the grid, painted on a picture, one panel for each layer (from 0) and activation.

    Colours as in ``draw_token_map``; they cover the picture the more, the stronger the effect. A dot: p, adjusted over
    the run, is below 0.05. The picture is that of the first pair; effects are those of all n pairs.

    Args:
        results: Rows whose token group is a patch.
        picture: ``H W 3``; None for a blank one.
        metric: Which; the first of the table where it is None.
        title: Stands above all panels.

    Raises:
        ValueError: If the table has no row of a patch.
    """
    rows = _of_metric(results, metric)
    places = rows["tokens"].map(lambda text: _PATCH.fullmatch(str(text)))
    rows, places = rows[places.notna()], places[places.notna()]
    if rows.empty:
        raise ValueError("results must hold at least one row of a patch, got none. Use --tokens patches.")
    rows = rows.assign(
        row=[int(match[1]) for match in places], column=[int(match[2]) for match in places], effect=_effect(rows)
    )
    shape = int(rows["row"].max()) + 1, int(rows["column"].max()) + 1
    norm = _symmetric(rows["effect"])
    keys = list(dict.fromkeys(zip(rows["part"], rows["name"], rows["layer"].astype("Int64"), strict=True)))
    columns = min(len(keys), 6)
    with style():
        lines = -(-len(keys) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(1.75 * columns + 0.9, 1.95 * lines + 0.7), squeeze=False, layout="constrained"
        )
        for panel, key in zip(axes.flat, keys, strict=False):
            same_layer = rows["layer"].isna() if pd.isna(key[2]) else rows["layer"] == key[2]
            _paint(panel, rows[(rows["part"] == key[0]) & (rows["name"] == key[1]) & same_layer], shape, picture, norm)
            panel.set_title(_panel_title((key[0], key[1])) if pd.isna(key[2]) else f"{key[1]} {key[2]}", fontsize=8.5)
        for panel in list(axes.flat)[len(keys) :]:
            panel.set_axis_off()
        _finish(figure, axes, rows, norm, title)
    return figure


def draw_curves(results: pd.DataFrame, *, title: str | None = None) -> Figure:
    """A metric by layer (from 0; of windows the layer they belong to), one panel for each metric.

    One curve for each token group; its band is the 95 % bootstrap interval of the mean over n pairs. Green: mean of the
    clean run; orange, dashed: of the corrupt run.

    Args:
        results: The table of a patch sweep.
        title: Stands above all panels.

    Raises:
        ValueError: If no row has a layer.
    """
    rows = results[results["layer"].notna()]
    if rows.empty:
        raise ValueError("results must hold at least one row with a layer, got none. Curves go by layer.")
    metrics = list(dict.fromkeys(rows["metric"]))
    with style():
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(4.4 * len(metrics) + 0.4, 3.6), squeeze=False, layout="constrained"
        )
        for panel, metric in zip(axes.flat, metrics, strict=True):
            of_metric = rows[rows["metric"] == metric]
            for level, dashes in (("clean", "-"), ("corrupt", (0, (5, 3)))):
                value = float(of_metric[level].iloc[0])
                panel.axhline(value, color=COLOURS[level], linestyle=dashes, linewidth=1.0, label=f"{level} run")
            keys = list(dict.fromkeys(zip(of_metric["name"], of_metric["tokens"], strict=True)))
            for number, (name, tokens) in enumerate(keys):
                curve = of_metric[(of_metric["name"] == name) & (of_metric["tokens"] == tokens)].sort_values("layer")
                colour, layers = SERIES[number % len(SERIES)], curve["layer"].astype(int)
                label = _spoken(tokens) or str(name)
                panel.plot(layers, curve["value"], color=colour, marker="o", markersize=2.6, label=label, zorder=3)
                panel.fill_between(
                    layers, curve["lower"].astype(float), curve["upper"].astype(float), color=colour, alpha=0.2,
                    linewidth=0,
                )  # fmt: skip
            panel.set_xlabel(f"layer, from 0 (window {_window(of_metric)})")
            panel.set_ylabel(_METRICS.get(str(metric), str(metric)))
            panel.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)))
        figure.suptitle(title or _title(rows), fontsize=11)
    return figure


def _draw_grid(
    results: pd.DataFrame, down: str, panels: Sequence[str], metric: str | None, title: str | None
) -> Figure:
    """One panel for each value of ``panels``; layers go across, ``down`` goes down."""
    rows = _of_metric(results, metric)
    rows = rows.assign(effect=_effect(rows))
    norm = _symmetric(rows["effect"])
    keys = list(dict.fromkeys(zip(*(rows[name] for name in panels), strict=True)))
    heights = [rows[_matches(rows, panels, key)][down].nunique() for key in keys]
    widest = max(rows[_matches(rows, panels, key)]["layer"].nunique(dropna=False) for key in keys)
    with style():
        figure, axes = plt.subplots(
            len(keys), 1, figsize=(max(4.6, 0.24 * widest + 2.6), sum(0.27 * h + 0.75 for h in heights) + 0.6),
            squeeze=False, layout="constrained", height_ratios=[h + 1.2 for h in heights],
        )  # fmt: skip
        for panel, key in zip(axes.flat, keys, strict=True):
            _draw_cells(panel, rows[_matches(rows, panels, key)], down, norm)
            panel.set_title(_panel_title(key), loc="left")
        axes.flat[-1].set_xlabel(f"layer, from 0 (window {_window(rows)})")
        _finish(figure, axes, rows, norm, title)
    return figure


def _draw_cells(panel: Axes, rows: pd.DataFrame, down: str, norm: Normalize) -> None:
    layers = sorted({-1 if pd.isna(layer) else int(layer) for layer in rows["layer"]})
    names = list(dict.fromkeys(rows[down]))
    effects = np.full((len(names), len(layers)), np.nan)
    for row in rows.to_dict("records"):
        y, x = names.index(row[down]), layers.index(-1 if pd.isna(row["layer"]) else int(row["layer"]))
        effects[y, x] = row["effect"]
        if row["p_adjusted"] < SIGNIFICANT:
            panel.plot(x, y, ".", color="#000000", markersize=2.5)
    panel.imshow(effects, cmap=_colours(), norm=norm, aspect="auto", interpolation="nearest")
    stride = max(1, -(-len(layers) // _MAX_TICKS))
    shown = range(0, len(layers), stride)
    panel.set_xticks(list(shown), ["-" if layers[i] < 0 else str(layers[i]) for i in shown], fontsize=7.5)
    labels = [f"head {name}" if down == "head" else _spoken(name) for name in names]
    panel.set_yticks(range(len(names)), labels, fontsize=8)
    panel.tick_params(length=2)


def _paint(
    panel: Axes,
    rows: pd.DataFrame,
    shape: tuple[int, int],
    picture: npt.NDArray[np.uint8] | None,
    norm: Normalize,
) -> None:
    height, width = shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if picture is not None:
        grey = picture.astype(float) @ np.array([0.299, 0.587, 0.114]) / 255  # luma of Rec. 601
        panel.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    effects = np.full(shape, np.nan)
    effects[rows["row"], rows["column"]] = rows["effect"].astype(float)
    alpha = np.clip(0.15 + 0.75 * np.abs(np.nan_to_num(effects)) / float(norm.vmax or 1.0), 0, 0.9)
    panel.imshow(effects, cmap=_colours(), norm=norm, alpha=alpha if picture is not None else 1.0, extent=extent)
    found = rows[rows["p_adjusted"] < SIGNIFICANT]
    panel.plot(found["column"], found["row"], ".", color="#000000", markersize=2.0)
    panel.set_xticks([])
    panel.set_yticks([])


def _finish(
    figure: Figure, axes: npt.NDArray[np.object_], rows: pd.DataFrame, norm: Normalize, title: str | None
) -> None:
    """The bar that explains the colours, and the title."""
    beyond = rows["effect"].abs().max() > float(norm.vmax or 1.0)
    bar = figure.colorbar(
        ScalarMappable(norm, _colours()), ax=axes, extend="both" if beyond else "neither", shrink=0.9, pad=0.02
    )
    lost = rows["unchanged"].iloc[0] == "clean"
    metric = _METRICS.get(str(rows["metric"].iloc[0]), str(rows["metric"].iloc[0])).split(" (")[0]
    bar.set_label(f"{'lost' if lost else 'recovered'} fraction\nof {metric}", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    figure.suptitle(title or _title(rows), fontsize=11)


def _of_metric(results: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    if results.empty:
        raise ValueError("results must hold at least one row of that kind, got none. Run patch-sweep first.")
    metric = str(results["metric"].iloc[0]) if metric is None else metric
    rows = results[results["metric"] == metric]
    if rows.empty:
        known = ", ".join(dict.fromkeys(results["metric"]))
        raise ValueError(f"metric must be one of {known}, got {metric!r}. Name one that was read out.")
    return rows


def _effect(rows: pd.DataFrame) -> "pd.Series[float]":
    """What is drawn: the recovered fraction where the corrupt run was changed, else the lost fraction."""
    recovered = rows["recovered"].astype(float)
    return recovered.where(rows["unchanged"] == "corrupt", 1 - recovered)


def _symmetric(effect: "pd.Series[float]") -> Normalize:
    most = float(effect.abs().max()) if effect.notna().any() else 1.0
    return Normalize(-min(max(most, _LEAST), _WIDEST), min(max(most, _LEAST), _WIDEST))


def _colours() -> mpl.colors.Colormap:
    colours = mpl.colormaps[DIVERGING].copy()
    colours.set_bad(COLOURS["undefined"])
    return colours


def _matches(rows: pd.DataFrame, names: Sequence[str], key: Sequence[object]) -> "pd.Series[bool]":
    found = pd.Series(True, index=rows.index)
    for name, value in zip(names, key, strict=True):
        found &= rows[name] == value
    return found


def _panel_title(key: Sequence[object]) -> str:
    part, name, *rest = (str(value) for value in key)
    where = "" if part == "language_model" else f"{part.replace('_', ' ')}: "
    return f"{where}{name.replace('_', ' ') if part == 'projector' else name}{f', {_spoken(rest[0])}' if rest else ''}"


def _spoken(tokens: object) -> str:
    return str(tokens).replace("->", " → ")


def _window(rows: pd.DataFrame) -> str:
    """How many layers a window has; ``varying`` where clipping or design makes them differ by more than the ends."""
    sizes = {_size(str(window)) for window in rows["window"] if isinstance(window, str) and window}
    return str(max(sizes)) if sizes and len(sizes) <= max(sizes) // 2 + 1 else "varying" if sizes else "-"


def _size(window: str) -> int:
    """``"1,4-6"`` -> 4."""
    ends = [piece.split("-") for piece in window.split(",")]
    return sum(int(piece[-1]) - int(piece[0]) + 1 for piece in ends)


def _title(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{first['model']}: {first['op']}, n = {int(rows['n'].max())}"
