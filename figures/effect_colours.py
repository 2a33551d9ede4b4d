"""Colours, marks and the colour bar of effects: red for positive, blue for negative, white for zero."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize

from figures.effects import METRICS, SIGNIFICANT, fraction_name
from figures.style import COLOURS, DIVERGING, figure_of

_WIDEST = 2.0  # largest half range of the colours; beyond it the bar has a pointed end
_NARROWEST = 0.1  # smallest half range, so that a map without effects stays pale
_DARK = 0.6  # share of the range above which marks are white, to show on dark cells


def symmetric_range(effect: "pd.Series[float]") -> Normalize:
    """A symmetric range around 0 that covers the effects; its ends are between 0.1 and 2 from 0."""
    most = float(effect.abs().max()) if effect.notna().any() else 1.0
    half = min(max(most, _NARROWEST), _WIDEST)
    return Normalize(-half, half)


def effect_colours() -> mpl.colors.Colormap:
    """The diverging colour map, grey for undefined values."""
    found = mpl.colormaps[DIVERGING].copy()
    found.set_bad(COLOURS["undefined"])
    return found


def mark_significant(
    panel: Axes, x: Sequence[int], y: Sequence[int], rows: pd.DataFrame, norm: Normalize, size: float = 2.5
) -> None:
    """Draw a dot on each cell whose adjusted p is below 0.05, or a minus sign if its effect is negative.

    The sign shows the direction in grey prints, where the two ends of the colour map are equally dark.
    """
    effect = rows["effect"].to_numpy(dtype=float)
    found = rows["p_adjusted"].to_numpy(dtype=float) < SIGNIFICANT
    dark = np.abs(effect) > _DARK * float(norm.vmax or 1.0)
    for negative in (False, True):
        for on_dark in (False, True):
            own = found & ((effect < 0) == negative) & (dark == on_dark)
            if own.any():
                panel.plot(
                    np.asarray(x)[own], np.asarray(y)[own], linestyle="", marker="_" if negative else ".",
                    color="#FFFFFF" if on_dark else "#000000", markersize=size * (1.2 if negative else 1.0),
                    markeredgewidth=0.8, gid="significant",
                )  # fmt: skip


def add_bar(axes: list[Axes], rows: pd.DataFrame, norm: Normalize) -> None:
    """Draw the colour bar of effects beside the panels."""
    beyond = rows["effect"].abs().max() > float(norm.vmax or 1.0)
    metric = str(rows["metric"].iloc[0])
    label = f"{fraction_name(rows)} of\n{METRICS.get(metric, metric).split(' (')[0]}"
    colour_bar(axes, ScalarMappable(norm, effect_colours()), label, extend="both" if beyond else "neither")


def colour_bar(
    axes: list[Axes], colours: ScalarMappable, label: str, *, extend: str = "neither", alpha: float | None = None
) -> Colorbar:
    """Draw a colour bar beside the panels."""
    bar = figure_of(axes).colorbar(colours, ax=axes, extend=extend, alpha=alpha, shrink=0.95, pad=0.02, aspect=16)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=6.5, length=2)
    return bar
