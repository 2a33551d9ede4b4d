"""Effects as a grid of cells with layers across: by token group (``draw_token_map``) or head (``draw_head_map``).

Both take the table of a patch sweep (``docs/results.md``).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from figures.effect_colours import add_bar, effect_colours, mark_significant, symmetric_range
from figures.effects import default_title, layer_label, matches, of_metric, site_title, token_title
from figures.panels import open_panels, stride
from figures.style import Panels, Width

_ALL_NAMED = 16  # largest number of rows that are all labelled


def draw_token_map(
    results: pd.DataFrame,
    *,
    metric: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Effect by layer (from 0) and token group, one panel for each activation that was changed.

    Red: recovered (or lost) fraction of the difference between clean and corrupt run; blue: a negative fraction. A
    dot: p, adjusted over the run, is below 0.05; a minus sign: the same, with a negative effect. Grey: undefined, since
    clean and corrupt run do not differ. The title gives n. ``metric`` is by default the table's first; the other
    arguments are described in ``figures.panels``.

    Example:
        >>> from figures import draw_token_map, example_table
        >>> [panel.get_title("left") for panel in draw_token_map(example_table("token_map_smol"))]
        ['resid_pre']
    """
    return _draw_grid(results, "tokens", ("part", "name"), 0.24, metric, title, axes, width, legend)


def draw_head_map(
    results: pd.DataFrame,
    *,
    metric: str | None = None,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Effect by layer and head (both from 0), one panel for each activation and token group.

    Colours, marks and arguments are those of ``draw_token_map``. Rows without a head are left out.

    Example:
        >>> from figures import draw_head_map, example_table
        >>> [panel.get_title("left") for panel in draw_head_map(example_table("head_map_smol"))]
        ['z, last']
    """
    of_heads = results[results["head"].notna() & (results["head"].astype(str) != "")]
    return _draw_grid(of_heads, "head", ("part", "name", "tokens"), 0.15, metric, title, axes, width, legend)


def _draw_grid(
    results: pd.DataFrame, down: str, panels: Sequence[str], row_height: float, metric: str | None, title: str | None,
    axes: Panels | None, width: Width, legend: bool,
) -> list[Axes]:  # fmt: skip
    """One panel for each value of the columns ``panels``; the column ``down`` gives the rows of a panel."""
    rows = of_metric(results, metric)
    norm = symmetric_range(rows["effect"])
    keys = list(dict.fromkeys(zip(*(rows[name] for name in panels), strict=True)))
    titles = [", ".join([site_title(*key[:2]), *map(token_title, key[2:])]) for key in keys]
    heights = [rows[matches(rows, panels, key)][down].nunique() * row_height + 0.5 for key in keys]
    with open_panels(
        axes, titles, width=width, columns=1, heights=heights, extra=0.45, title=title,
        default_title=default_title(rows),
    ) as opened:  # fmt: skip
        for panel, key, name in zip(opened.axes, keys, titles, strict=True):
            _draw_cells(panel, rows[matches(rows, panels, key)], down, norm)
            panel.set_title(name, loc="left")
        for panel in opened.axes if not opened.own else opened.axes[-1:]:
            panel.set_xlabel(layer_label(rows))
        if legend:
            add_bar(opened.axes, rows, norm)
    return opened.axes


def _draw_cells(panel: Axes, rows: pd.DataFrame, down: str, norm: Normalize) -> None:
    order = [-1 if pd.isna(layer) else int(layer) for layer in rows["layer"]]
    layers = sorted(set(order))
    names = list(dict.fromkeys(rows[down]))
    x, y = [layers.index(layer) for layer in order], [names.index(name) for name in rows[down]]
    effects = np.full((len(names), len(layers)), np.nan)
    effects[y, x] = rows["effect"].to_numpy(dtype=float)
    panel.imshow(effects, cmap=effect_colours(), norm=norm, aspect="auto", interpolation="nearest")
    mark_significant(panel, x, y, rows, norm)
    labels = ["-" if layer < 0 else str(layer) for layer in layers]
    every = stride(panel, labels, float(len(layers)))
    panel.set_xticks(list(range(0, len(layers), every)), labels[::every])
    every = 1 if len(names) <= _ALL_NAMED else 4
    panel.set_yticks(list(range(0, len(names), every)), [token_title(name) for name in names[::every]])
    if down == "head":
        panel.set_ylabel("head, from 0")
    panel.tick_params(length=2)
