"""Geometry of activations: curves by layer (``draw_geometry``) and layer by layer (``draw_layer_map``).

They take ``results.csv`` and ``map.csv`` of ``geometry-sweep`` (``docs/results.md``).
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from figures.effect_colours import colour_bar
from figures.panels import draw_band, open_panels, stride
from figures.style import COLOURS, LINES, SEQUENTIAL, SERIES, SERIES_MARKERS, Panels, Width, figure_of

_SMALL = 6.0  # size of the names of curves, and what they take, in points:
_PER_LETTER, _PER_HANDLE, _PER_ROW = 3.4, 26.0, 7.9
_TITLE_PAD = 6.0  # Matplotlib's own

# measure -> label of its axis, in the order of the panels
MEASURES = {
    "gride": "intrinsic dimension",
    "overlap": "neighbourhood overlap",
    "mutual_knn": "mutual kNN",
    "cka_unbiased": "CKA, unbiased",
    "imbalance": "information imbalance",
    "cosine_gap": "cosine gap",
    "id_correlation": "ID correlation",
    "label_overlap": "overlap with labels",
}


class Curve:
    """One curve of a panel: its rows by layer, its label and its number, which gives colour and marker."""

    def __init__(self, rows: pd.DataFrame, label: str, number: int) -> None:
        self.rows, self.label, self.number = rows, label, number


def geometry_panels(
    results: pd.DataFrame, comparison: str, rank: str | None = None
) -> list[tuple[str, str, list[Curve]]]:
    """Title, axis label and curves of every panel of a comparison; ``rank`` None is that of the run."""
    own = results[results["comparison"] == comparison].sort_values("layer_a")
    first = own.iloc[0]
    sides = side_names(first)
    found = []
    for measure, label in MEASURES.items():
        rows = own[own["measure"].str.startswith(measure) if measure == "imbalance" else own["measure"] == measure]
        if measure == "gride":
            rows = rows[rows["chosen"] if rank is None else rows["rank"] == rank]
        if rows["value"].isna().all():
            continue
        if measure == "label_overlap":
            keys = list(dict.fromkeys(zip(rows["side"], rows["target"], strict=True)))
            curves = [
                Curve(rows[(rows["side"] == s) & (rows["target"] == t)], f"{sides[s]}, {t}", n)
                for n, (s, t) in enumerate(keys)
            ]
        elif measure == "gride":
            curves = [Curve(rows[rows["side"] == side], sides[side], n) for n, side in enumerate("ab")]
        elif measure == "imbalance":
            ways = {"imbalance_a_to_b": ("a", "b"), "imbalance_b_to_a": ("b", "a")}
            curves = [
                Curve(rows[rows["measure"] == way], f"{sides[x]} → {sides[y]}", n)
                for n, (way, (x, y)) in enumerate(ways.items())
            ]
        else:
            curves = [Curve(rows, "", 0)]
        at = f" at rank {rows['rank'].iloc[0]}" if measure == "gride" else ""
        title = f"{MEASURES[measure]}{at}, n = {int(rows['n'].max())}"
        found.append((title, label, curves))
    return found


def side_names(row: "pd.Series[Any]") -> dict[str, str]:
    """What both sides are, in the shortest words that tell them apart."""
    names = {side: f"{row[f'condition_{side}']}, {row[f'tokens_{side}']}" for side in "ab"}
    if names["a"] == names["b"] or row["kind"] == "runs":
        models = {side: str(row[f"model_{side}"]).rstrip("/").rsplit("/", 1)[-1] for side in "ab"}
        return models if models["a"] != models["b"] else {"a": "run a", "b": "run b"}
    return names


def draw_geometry(
    results: pd.DataFrame,
    *,
    comparison: str | None = None,
    rank: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Measures of two representations by layer (from 0), one panel for each measure.

    Bands are 95 % intervals over halves of the n examples, drawn without replacement. Green, dash-dotted: shuffled
    pairs, mean. Violet: the same measure in a randomly initialised model. ``comparison`` is by default the
    table's first, ``rank`` (such as ``8,16``) that of the run. The other arguments are described in ``figures.panels``.

    Example:
        >>> import pandas as pd
        >>> from figures import draw_geometry
        >>> row = {"comparison": "image/last - caption/last", "kind": "image-caption", "model_a": "smol", "n": 90,
        ...        "model_b": "smol", "condition_a": "image", "tokens_a": "last", "condition_b": "caption",
        ...        "tokens_b": "last", "side": "both", "measure": "overlap", "rank": "", "chosen": True, "target": "",
        ...        "lower": 0.1, "upper": 0.3, "control": 0.05, "random_init": 0.1}
        >>> made = pd.DataFrame([{**row, "layer_a": layer, "layer_b": layer, "value": 0.2} for layer in (0, 1)])
        >>> draw_geometry(made)[0].get_ylabel()
        'neighbourhood overlap'
    """
    comparison = comparison or str(results["comparison"].iloc[0])
    panels = geometry_panels(results, comparison, rank)
    if not panels:
        raise ValueError(f"results must contain a measure of {comparison!r}, got none. Choose another comparison.")
    first = results[results["comparison"] == comparison].iloc[0]
    models = " and ".join(dict.fromkeys([str(first["model_a"]), str(first["model_b"])]))
    with open_panels(
        axes, [title for title, _, _ in panels], width=width, columns=2 if width == "two" else 1, heights=1.9,
        extra=0.9, title=title, default_title=f"{models}: {comparison}, layer by layer", legend=legend,
    ) as opened:  # fmt: skip
        opened.axes[0].fill_between([], [], [], color="#777777", alpha=0.3, linewidth=0, label="95 % interval")
        for panel, (name, label, curves) in zip(opened.axes, panels, strict=True):
            lines = _draw_panel(panel, curves)
            named = legend and len(curves) > 1
            height = _draw_names(panel, lines, [curve.label for curve in curves]) if named else 0.0
            panel.set_title(name, loc="left", pad=_TITLE_PAD + height)
            panel.set_ylabel(label)
            panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        for panel in opened.axes[-opened.columns :]:
            panel.set_xlabel("layer, from 0")
    return opened.axes


def _draw_panel(panel: Axes, curves: list[Curve]) -> list[Line2D]:
    """Draw the curves of a panel and their controls; the lines of the curves."""
    lines: list[Line2D] = []
    for curve in curves:
        rows = curve.rows[curve.rows["value"].notna()]
        layers = rows["layer_a"].astype(int)
        colour = SERIES[curve.number % len(SERIES)]
        marker = SERIES_MARKERS[curve.number % len(SERIES_MARKERS)]
        lines += panel.plot(layers, rows["value"], color=colour, marker=marker, label="_", zorder=3)
        draw_band(panel, layers, rows, colour)
        for column, concept, label in (
            ("control", "control", "shuffled pairs"), ("random_init", "random_init", "randomly initialised model"),
        ):  # fmt: skip
            if rows[column].notna().any():
                once = label if curve.number == 0 else None
                panel.plot(
                    layers, rows[column], color=COLOURS[concept], linestyle=LINES[concept][0], label=once, zorder=2
                )
    return lines


def _draw_names(panel: Axes, lines: list[Line2D], labels: list[str]) -> float:
    """Name the curves of a panel between the panel and its title; the height of the names in points.

    The legend is not the panel's own one, which the legend of all panels may take.
    """
    points = panel.get_position().width * figure_of(panel).get_figwidth() * 72 * 0.9  # the layout is computed later
    widths = [_PER_LETTER * len(label) + _PER_HANDLE for label in labels]
    columns = len(labels) if sum(widths) <= points else min(max(int(points // max(widths)), 1), len(labels))
    names = Legend(
        panel, lines, labels, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1, borderpad=0.2, ncols=columns,
        fontsize=_SMALL, labelspacing=0.2, columnspacing=1.4,
    )  # fmt: skip
    panel.add_artist(names)
    return _PER_ROW * -(-len(labels) // columns)


def draw_layer_map(
    table: pd.DataFrame,
    *,
    comparison: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Every layer of one side against every layer of the other, one panel for each measure.

    Colours run from 0 to the largest value of a panel; a ring marks the largest. No intervals are drawn;
    ``map.csv`` has those of the overlap. ``comparison`` is by default the table's first. The other arguments are
    described in ``figures.panels``.

    Example:
        >>> import pandas as pd
        >>> from figures import draw_layer_map
        >>> rows = [(a, b, abs(a - b) / 4) for a in range(3) for b in range(3)]
        >>> made = pd.DataFrame(rows, columns=["layer_a", "layer_b", "value"]).assign(
        ...     comparison="image/last - caption/last", model_a="smol", model_b="smol", measure="overlap", n=90)
        >>> draw_layer_map(made)[0].get_title("left")
        'neighbourhood overlap'
    """
    comparison = comparison or str(table["comparison"].iloc[0])
    rows = table[table["comparison"] == comparison]
    if rows.empty:
        raise ValueError(f"table must contain rows of {comparison!r}, got none. Choose another comparison.")
    measures = [str(measure) for measure in dict.fromkeys(rows["measure"])]
    models = " and ".join(dict.fromkeys([str(rows["model_a"].iloc[0]), str(rows["model_b"].iloc[0])]))
    a, b = comparison.split(" - ", 1)
    with open_panels(
        axes, measures, width=width, columns=3 if width == "two" else 1, heights=2.3, extra=0.5, title=title,
        default_title=f"{models}: {comparison}, layer against layer, n = {int(rows['n'].iloc[0])}",
    ) as opened:  # fmt: skip
        for number, (panel, measure) in enumerate(zip(opened.axes, measures, strict=True)):
            grid = rows[rows["measure"] == measure].pivot(index="layer_a", columns="layer_b", values="value")
            values = grid.to_numpy(dtype=float)
            norm = Normalize(0, max(float(np.nanmax(values)), 1e-6))
            panel.imshow(values, cmap=SEQUENTIAL, norm=norm, origin="lower", interpolation="nearest", aspect="auto")
            row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
            for edge, thick in (("#FFFFFF", 2.6), ("#000000", 1.0)):  # to show on dark and on light cells
                panel.plot(
                    [column], [row], marker="o", markersize=5, markerfacecolor="none", markeredgecolor=edge,
                    markeredgewidth=thick, gid="nearest",
                )  # fmt: skip
            for names, set_ticks in ((grid.columns, panel.set_xticks), (grid.index, panel.set_yticks)):
                labels = [str(int(layer)) for layer in names]
                every = stride(panel, labels, float(len(labels)))
                set_ticks(list(range(0, len(labels), every)), labels[::every])
            panel.tick_params(length=2)
            panel.set_title(MEASURES.get(measure, measure), loc="left")
            panel.set_xlabel(f"layer of {b}")
            if number % opened.columns == 0 or not opened.own:
                panel.set_ylabel(f"layer of {a}")
            if legend:
                colour_bar([panel], ScalarMappable(norm, SEQUENTIAL), "")
    return opened.axes
