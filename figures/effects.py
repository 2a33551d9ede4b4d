"""What maps and curves of interventions have in common: the fraction that is drawn, its colours, marks and names.

Maps show the recovered fraction where the corrupt run was changed (0: as corrupt, 1: as clean), and the lost fraction,
1 - recovered, where the clean run was (0: as clean, 1: as corrupt). So 0 is always no effect.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from figures.style import COLOURS, DIVERGING, figure_of

SIGNIFICANT = 0.05  # of p_adjusted; such cells bear a mark
METRICS = {
    "logit_difference": "logit difference (logits)",
    "log_prob": "log-probability of the answer (nats)",
    "probability": "probability of the answer",
    "kl": "KL divergence from the clean run (nats)",
    "accuracy": "accuracy of the answer",
}
_WIDEST = 2.0  # of a fraction: beyond it colours say no more, and the bar has a pointed end
_LEAST = 0.1  # half of the range at least: below it a map without effects would be all colour
_DARK = 0.6  # of the range: beyond it a mark is white, since a black one would drown
_KEYS = ("tokens", "head", "window", "name", "part", "site")


def of_metric(results: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """The rows of one metric, with ``effect``; the first metric of the table where it is None.

    Raises:
        ValueError: If there is no such row.
    """
    if results.empty:
        raise ValueError("results must hold at least one row of that kind, got none. Run patch-sweep first.")
    metric = str(results["metric"].iloc[0]) if metric is None else metric
    rows = results[results["metric"] == metric]
    if rows.empty:
        known = ", ".join(dict.fromkeys(results["metric"]))
        raise ValueError(f"metric must be one of {known}, got {metric!r}. Name one that was read out.")
    recovered = rows["recovered"].astype(float)
    return in_words(rows).assign(effect=recovered.where(rows["unchanged"] == "corrupt", 1 - recovered))


def in_words(results: pd.DataFrame) -> pd.DataFrame:
    """The table with empty text as ``""`` and heads as text, whether it was read from Parquet or from CSV."""

    def word(value: object) -> str:
        if pd.isna(value):  # type: ignore[call-overload]
            return ""
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return results.assign(**{key: [word(value) for value in results[key]] for key in _KEYS if key in results})


def symmetric(effect: "pd.Series[float]") -> Normalize:
    """A range around 0 that holds all effects, within bounds."""
    most = float(effect.abs().max()) if effect.notna().any() else 1.0
    half = min(max(most, _LEAST), _WIDEST)
    return Normalize(-half, half)


def colours() -> mpl.colors.Colormap:
    """The diverging map; what is undefined is grey."""
    found = mpl.colormaps[DIVERGING].copy()
    found.set_bad(COLOURS["undefined"])
    return found


def mark_significant(
    panel: Axes, x: Sequence[int], y: Sequence[int], rows: pd.DataFrame, norm: Normalize, size: float = 2.5
) -> None:
    """A dot on each cell whose adjusted p is below 0.05, a minus sign where its effect is negative.

    The sign is there for readers in grey: the two ends of the colours are equally dark.
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
    """The bar that explains the colours, beside the panels."""
    beyond = rows["effect"].abs().max() > float(norm.vmax or 1.0)
    bar = figure_of(axes).colorbar(
        ScalarMappable(norm, colours()), ax=axes, extend="both" if beyond else "neither", shrink=0.95, pad=0.02,
        aspect=16,
    )  # fmt: skip
    metric = str(rows["metric"].iloc[0])
    bar.set_label(f"{fraction_name(rows)} of\n{METRICS.get(metric, metric).split(' (')[0]}", fontsize=7)
    bar.ax.tick_params(labelsize=6.5, length=2)


def fraction_name(rows: pd.DataFrame) -> str:
    """``lost fraction`` where the clean run was changed, else ``recovered fraction``."""
    return "lost fraction" if rows["unchanged"].iloc[0] == "clean" else "recovered fraction"


def matches(rows: pd.DataFrame, names: Sequence[str], key: Sequence[object]) -> "pd.Series[bool]":
    """The rows that hold ``key`` in the columns ``names``."""
    found = pd.Series(True, index=rows.index)
    for name, value in zip(names, key, strict=True):
        found &= rows[name] == value
    return found


def site_title(part: str, name: str, layer: object = None) -> str:
    """A site in few words: ``resid_pre 12``, ``projector out``, ``vision tower 3``."""
    if part == "projector":
        return f"projector {name.replace('_', ' ')}"
    where = "" if part == "language_model" else f"{part.replace('_', ' ')} "
    # of the vision tower only the usual activation goes without saying
    what = "" if part == "vision_tower" and name == "resid_post" and not pd.isna(layer) else name  # type: ignore[call-overload]
    return f"{where}{what}{'' if pd.isna(layer) else f' {layer}'}".replace("  ", " ")  # type: ignore[call-overload]


def spoken(tokens: str) -> str:
    """A token group for people: ``image → last``."""
    return tokens.replace("->", " → ")


def layer_label(rows: pd.DataFrame) -> str:
    """The layer axis in words, with what a window around a layer holds."""
    windows = [(_ends(window), layer) for window, layer in zip(rows["window"], rows["layer"], strict=True) if window]
    if not windows:
        return "layer, from 0"
    last = max(high for (_, high, _), _ in windows)
    if len(windows) > 1 and any(size > 1 for (_, _, size), _ in windows):
        if all(low == 0 and high == layer and size == high + 1 for (low, high, size), layer in windows):
            return "layer l, from 0 (window 0 to l)"
        if all(low == layer and high == last and size == high - low + 1 for (low, high, size), layer in windows):
            return f"layer l, from 0 (window l to {last})"
    sizes = {size for (_, _, size), _ in windows}
    if sizes == {1}:
        return "layer, from 0"
    # clipped at the ends of the model a window is smaller; designs that differ by more have no one size
    return f"layer, from 0 (window {max(sizes) if len(sizes) <= max(sizes) // 2 + 1 else 'varying'})"


def _ends(window: str) -> tuple[int, int, int]:
    """``"1,4-6"`` -> first 1, last 6, layers 4."""
    ends = [piece.split("-") for piece in window.split(",")]
    size = sum(int(piece[-1]) - int(piece[0]) + 1 for piece in ends)
    return int(ends[0][0]), int(ends[-1][-1]), size


def usual_title(rows: pd.DataFrame) -> str:
    """Model, operation and number of pairs."""
    first = rows.iloc[0]
    return f"{first['model']}: {first['op']}, {pairs(rows)}"


def pairs(rows: pd.DataFrame) -> str:
    """How many pairs there are: ``n = 1 pair``, ``n = 40 pairs``."""
    n = int(rows["n"].max())
    return f"n = {n} pair{'' if n == 1 else 's'}"
