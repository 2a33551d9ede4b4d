"""The effect of an intervention: the recovered or lost fraction of a metric, and the labels that figures use for it.

``with_effect(results)`` adds the effect to the table of a patch sweep. Only pandas is imported here, so that tables can
be summarised without the drawing libraries.
"""

from collections.abc import Sequence

import pandas as pd

from figures.layer_axis import layers_of

SIGNIFICANT = 0.05  # threshold of ``p_adjusted`` and ``p_max``
METRICS = {
    "logit_difference": "logit difference (logits)",
    "log_prob": "log-probability of the answer (nats)",
    "cider": "CIDEr-D of the caption (0 to 10)",
    "probability": "probability of the answer",
    "kl": "KL divergence from the clean run (nats)",
    "accuracy": "accuracy of the answer",
}
_TEXT = ("tokens", "head", "window", "name", "part", "site")
# p-values corrected for the choice among all sites or cells; tables from before p_max hold false discovery rates only
_CORRECTED = ("p_max", "q", "p_adjusted")


def tested_by(results: pd.DataFrame) -> str | None:
    """The column that says which sites or cells are significant; None if the table holds no such test.

    Example:
        >>> tested_by(pd.DataFrame({"p": [0.01], "p_adjusted": [0.02]}))
        'p_adjusted'
    """
    return next((name for name in _CORRECTED if name in results), None)


def of_earlier_version(results: pd.DataFrame) -> str:
    """A half-sentence for captions of a table from before ``p_max``; empty for other tables.

    Example:
        >>> of_earlier_version(pd.DataFrame({"p_max": [0.01]}))
        ''
    """
    name = tested_by(results)
    if name in (None, "p_max"):
        return ""
    return (
        f"; this table is from before p_max, so significant is by a false discovery rate ({name}), which is not "
        "corrected for the choice among all: run the sweep again for a corrected choice"
    )


def with_effect(results: pd.DataFrame) -> pd.DataFrame:
    """The table with the column ``effect``, and ``effect_lower`` and ``effect_upper`` where it has intervals.

    ``best_effect`` with its ends is that of the best cell, corrected for the choice of the cell.

    The effect is the recovered fraction where the corrupt run was changed (0: as corrupt, 1: as clean), and the lost
    fraction, 1 - recovered, where the clean run was (0: as clean, 1: as corrupt). 0 is always no effect. The ends of an
    interval swap places with the sign. Without the column ``unchanged``, the corrupt run is assumed.

    Example:
        >>> table = pd.DataFrame({"unchanged": ["corrupt", "clean"], "recovered": [0.75, 0.75],
        ...                       "recovered_lower": [0.5, 0.5], "recovered_upper": [0.875, 0.875]})
        >>> with_effect(table)[["effect", "effect_lower", "effect_upper"]].to_numpy().tolist()
        [[0.75, 0.5, 0.875], [0.25, 0.125, 0.5]]
    """
    lost = results["unchanged"] == "clean" if "unchanged" in results else pd.Series(False, index=results.index)
    low, high = "recovered_lower", "recovered_upper"
    sources = {"effect": ("recovered", "recovered"), "effect_lower": (low, high), "effect_upper": (high, low)}
    sources |= {
        "best_effect": ("best_recovered", "best_recovered"),
        "best_effect_lower": ("best_lower", "best_upper"),
        "best_effect_upper": ("best_upper", "best_lower"),
    }
    found = {
        name: results[kept].astype(float).where(~lost, 1 - results[swapped].astype(float))
        for name, (kept, swapped) in sources.items()
        if kept in results
    }
    return results.assign(**found)


def fraction_name(rows: pd.DataFrame) -> str:
    """``lost fraction`` where the clean run was changed, else ``recovered fraction``."""
    lost = "unchanged" in rows and rows["unchanged"].iloc[0] == "clean"
    return "lost fraction" if lost else "recovered fraction"


def of_metric(results: pd.DataFrame, metric: str | None) -> pd.DataFrame:
    """The rows of one metric with their effect; of the table's first metric if None.

    Raises:
        ValueError: If there is no such row.
    """
    if results.empty:
        raise ValueError("results must hold at least one row of that kind, got none. Run patch-sweep first.")
    metric = str(results["metric"].iloc[0]) if metric is None else metric
    rows = results[results["metric"] == metric]
    if rows.empty:
        known = ", ".join(dict.fromkeys(results["metric"]))
        raise ValueError(f"metric must be one of {known}, got {metric!r}.")
    return with_effect(as_text(rows))


def as_text(results: pd.DataFrame) -> pd.DataFrame:
    """The table with missing text as ``""`` and heads as text, the same from Parquet and from CSV."""

    def word(value: object) -> str:
        if pd.isna(value):  # type: ignore[call-overload]
            return ""
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return results.assign(**{key: [word(value) for value in results[key]] for key in _TEXT if key in results})


def matches(rows: pd.DataFrame, names: Sequence[str], key: Sequence[object]) -> "pd.Series[bool]":
    """True for the rows whose columns ``names`` equal ``key``."""
    found = pd.Series(True, index=rows.index)
    for name, value in zip(names, key, strict=True):
        found &= rows[name] == value
    return found


def site_title(part: str, name: str, layer: object = None) -> str:
    """A short title of a site: ``resid_pre 12``, ``projector out``, ``vision tower 3``."""
    if part == "projector":
        return f"projector {name.replace('_', ' ')}"
    where = "" if part == "language_model" else f"{part.replace('_', ' ')} "
    # resid_post of the vision tower is not named
    what = "" if part == "vision_tower" and name == "resid_post" and not pd.isna(layer) else name  # type: ignore[call-overload]
    return f"{where}{what}{'' if pd.isna(layer) else f' {layer}'}".replace("  ", " ")  # type: ignore[call-overload]


def token_title(tokens: str) -> str:
    """A token group with an arrow: ``image → last``."""
    return tokens.replace("->", " → ")


def layer_label(rows: pd.DataFrame) -> str:
    """The label of the layer axis, with the size of the window around each layer."""
    both = zip(rows["window"], rows["layer"], strict=True)
    windows = [(layers_of(window), layer) for window, layer in both if window]
    if not windows:
        return "layer, from 0"
    last = max(layers[-1] for layers, _ in windows)
    if len(windows) > 1 and any(len(layers) > 1 for layers, _ in windows):
        if all(layer == layers[-1] and layers == list(range(layers[-1] + 1)) for layers, layer in windows):
            return "layer l, from 0 (window 0 to l)"
        if all(layer == layers[0] and layers == list(range(layers[0], last + 1)) for layers, layer in windows):
            return f"layer l, from 0 (window l to {last})"
    sizes = {len(layers) for layers, _ in windows}
    if sizes == {1}:
        return "layer, from 0"
    # windows are clipped at the first and last layer, so up to half of the sizes are smaller than the design's
    return f"layer, from 0 (window {max(sizes) if len(sizes) <= max(sizes) // 2 + 1 else 'varying'})"


def default_title(rows: pd.DataFrame) -> str:
    """Model, operation and number of pairs."""
    first = rows.iloc[0]
    return f"{first['model']}: {first['op']}, {count_pairs(rows)}"


def count_pairs(rows: pd.DataFrame) -> str:
    """The number of pairs: ``n = 1 pair``, ``n = 40 pairs``."""
    n = int(rows["n"].max())
    return f"n = {n} pair{'' if n == 1 else 's'}"
