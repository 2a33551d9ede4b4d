"""Effects as a grid of cells, layers across: what the maps of token groups and of heads share."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from figures.effects import (
    add_bar,
    colours,
    layer_label,
    mark_significant,
    matches,
    of_metric,
    site_title,
    spoken,
    symmetric,
    usual_title,
)
from figures.panels import add_title, open_panels, stride
from figures.style import Panels, Width, style

_TALLEST = 16  # rows of a map that are all named


def draw_grid(
    results: pd.DataFrame,
    down: str,
    panels: Sequence[str],
    *,
    metric: str | None,
    title: str | None,
    axes: Panels | None,
    width: Width,
    legend: bool,
    row_height: float,
) -> list[Axes]:
    """One panel for each value of ``panels``; layers go across, ``down`` goes down.

    Args:
        results: The table of a patch sweep.
        down: The column whose values go down.
        panels: The columns that make a panel: part, name, and maybe tokens.
        metric: Which; the first of the table where it is None.
        title: Above all panels.
        axes: To draw into, one for each panel; None for a new figure.
        width: Of a new figure.
        legend: Whether there is a bar that explains the colours.
        row_height: Of a cell, in inches, in a new figure.

    Raises:
        ValueError: If the table has no such row, or ``axes`` are not one for each panel.
    """
    rows = of_metric(results, metric)
    norm = symmetric(rows["effect"])
    keys = list(dict.fromkeys(zip(*(rows[name] for name in panels), strict=True)))
    titles = [", ".join([site_title(*key[:2]), *map(spoken, key[2:])]) for key in keys]
    heights = [rows[matches(rows, panels, key)][down].nunique() * row_height + 0.5 for key in keys]
    with style():
        opened = open_panels(axes, titles, width=width, columns=1, row_heights=heights, extra=0.45)
        for panel, key, name in zip(opened.axes, keys, titles, strict=True):
            _draw_cells(panel, rows[matches(rows, panels, key)], down, norm)
            panel.set_title(name, loc="left")
        for panel in opened.axes if not opened.own else opened.axes[-1:]:
            panel.set_xlabel(layer_label(rows))
        if legend:
            add_bar(opened.axes, rows, norm)
        add_title(opened, title, usual_title(rows))
    return opened.axes


def _draw_cells(panel: Axes, rows: pd.DataFrame, down: str, norm: Normalize) -> None:
    order = [-1 if pd.isna(layer) else int(layer) for layer in rows["layer"]]
    layers = sorted(set(order))
    names = list(dict.fromkeys(rows[down]))
    x, y = [layers.index(layer) for layer in order], [names.index(name) for name in rows[down]]
    effects = np.full((len(names), len(layers)), np.nan)
    effects[y, x] = rows["effect"].to_numpy(dtype=float)
    panel.imshow(effects, cmap=colours(), norm=norm, aspect="auto", interpolation="nearest")
    mark_significant(panel, x, y, rows, norm)
    labels = ["-" if layer < 0 else str(layer) for layer in layers]
    every = stride(panel, labels, float(len(layers)))
    panel.set_xticks(list(range(0, len(layers), every)), labels[::every])
    every = 1 if len(names) <= _TALLEST else 4
    panel.set_yticks(list(range(0, len(names), every)), [spoken(name) for name in names[::every]])
    if down == "head":
        panel.set_ylabel("head, from 0")
    panel.tick_params(length=2)
