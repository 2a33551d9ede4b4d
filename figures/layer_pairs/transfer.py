"""Probes read across captions and pictures, layer by layer: ``draw_transfer(table)`` for ``transfer-sweep``."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from figures.effect_colours import colour_bar
from figures.panels import open_panels, stride
from figures.style import COLOURS, Panels, Width

_SIGNIFICANT = 0.05
_METRICS = {"balanced_accuracy": "balanced accuracy", "r2": "R2"}


def draw_transfer(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    axes: Panels | None = None,
    width: Width = "two",
    legend: bool = True,
) -> list[Axes]:
    """Score by the layer that a probe is fitted at and the layer that it is read at, one panel a target and direction.

    The colours begin at chance. A dot: p, adjusted for the choice among all pairs of the panel, is below 0.05. The
    title gives n. Arguments are described in ``figures.panels``.

    Example:
        >>> import pandas as pd
        >>> from figures import draw_transfer
        >>> made = pd.DataFrame([(0, 0, 0.5, 0.9), (0, 1, 0.9, 0.01), (1, 0, 0.5, 0.9), (1, 1, 0.6, 0.5)],
        ...     columns=["source_layer", "read_layer", "score", "p_max"]).assign(
        ...     model="smol", target="count", direction="caption to image", metric="balanced_accuracy", chance=0.5, n=9)
        >>> draw_transfer(made)[0].get_title("left")
        'count, caption to image'
    """
    keys = list(dict.fromkeys(zip(table["target"], table["direction"], strict=True)))
    titles = [f"{target}, {direction}" for target, direction in keys]
    metrics = " and ".join(dict.fromkeys(_METRICS.get(str(name), str(name)) for name in table["metric"]))
    default = f"{table['model'].iloc[0]}: probes of one side read on the other, n = {int(table['n'].max())}"
    colours = mpl.colormaps["viridis"].copy()
    colours.set_bad(COLOURS["undefined"])
    low, high = float(table["chance"].min()), float(table["score"].max())
    norm = Normalize(low, max(high, low + 0.05))
    columns = 2 if width == "two" else 1
    with open_panels(
        axes, titles, width=width, columns=columns, heights=2.6, extra=0.4, title=title, default_title=default
    ) as opened:
        for panel, key, name in zip(opened.axes, keys, titles, strict=True):
            rows = table[(table["target"] == key[0]) & (table["direction"] == key[1])]
            _draw(panel, rows, str(key[1]), colours, norm)
            panel.set_title(name, loc="left")
        if legend:
            below = bool((table["score"] < low).any())
            colour_bar(
                opened.axes, ScalarMappable(norm, colours), f"{metrics}, from chance",
                extend="min" if below else "neither",
            )  # fmt: skip
    return opened.axes


def _draw(panel: Axes, rows: pd.DataFrame, direction: str, colours: mpl.colors.Colormap, norm: Normalize) -> None:
    source, _, read = direction.partition(" to ")
    down, across = (sorted({int(layer) for layer in rows[name]}) for name in ("source_layer", "read_layer"))
    y = [down.index(int(layer)) for layer in rows["source_layer"]]
    x = [across.index(int(layer)) for layer in rows["read_layer"]]
    scores = np.full((len(down), len(across)), np.nan)
    scores[y, x] = rows["score"].to_numpy(dtype=float)
    panel.imshow(scores, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", origin="lower")
    found = rows["p_max"].to_numpy(dtype=float) < _SIGNIFICANT
    # White on the dark end of the colour map, black on the light one.
    dark = norm(rows["score"].to_numpy(dtype=float)) < 0.6
    for on_dark in (False, True):
        own = found & (dark == on_dark)
        if own.any():
            panel.plot(
                np.asarray(x)[own], np.asarray(y)[own], linestyle="", marker=".", markersize=2.0,
                color="#FFFFFF" if on_dark else "#000000", gid="significant",
            )  # fmt: skip
    every = stride(panel, [str(layer) for layer in across], float(len(across)))
    panel.set_xticks(list(range(0, len(across), every)), [str(layer) for layer in across[::every]])
    step = max(1, len(down) // 8)
    panel.set_yticks(list(range(0, len(down), step)), [str(layer) for layer in down[::step]])
    panel.set_xlabel(f"read at {read} layer, from 0")
    panel.set_ylabel(f"fitted at {source} layer")
    panel.tick_params(length=2)
