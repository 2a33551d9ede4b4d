"""The cell with the largest effect of each token group of a patch sweep, from its saved table."""

import pandas as pd

from figures.effects import SIGNIFICANT, with_effect

_GROUPED = ("part", "name", "tokens", "metric")
_CELL = ("layer", "window", "head", "value", "lower", "upper", "p_adjusted", "p_max")  # empty without a best cell
_EFFECT = ("effect", "effect_lower", "effect_upper")
_KEPT = (
    *_GROUPED, *_CELL, "clean", "corrupt", *_EFFECT, "n", "n_undefined",
)  # fmt: skip


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """The cell with the largest effect for each activation, token group (single patches count as one) and metric.

    It is the cell for which the table holds an effect corrected for the choice. If only others are significant, it is
    the largest of these, without an effect. The effect is that of ``figures.effects``.
    ``n_significant`` counts cells whose adjusted p is below 0.05. If no cell of the group is significant after
    correction for the choice among all cells of the run (``p_max``), the cell and its values are empty.
    """
    if "p_max" not in results:  # a table from before this column
        results = results.assign(p_max=results["p_adjusted"], best_recovered=None, best_lower=None, best_upper=None)
    rows = with_effect(results)
    rows = rows.assign(tokens=grouped_tokens(rows), place=rows["tokens"])
    base = rows["clean"].where(rows["unchanged"] == "clean", rows["corrupt"])
    rows = rows.assign(change=(rows["value"] - base).abs())
    is_corrected = bool(rows["best_effect"].notna().any())
    found = []
    for _, group in rows.groupby(list(_GROUPED), sort=False):
        significant = group[group["p_max"] < SIGNIFICANT]
        is_found = not significant.empty
        pool = significant if is_found else group
        stated = pool[pool["best_effect"].notna()]
        # Without a fraction, the cell with the largest change of the metric.
        size = pool["effect"].abs() if pool["effect"].notna().any() else pool["change"]
        largest = int(size.to_numpy(dtype=float, na_value=-1).argmax())
        best = pool.iloc[largest] if stated.empty else stated.iloc[0]
        row = {name: best[name] for name in _KEPT}
        row |= {"place": best["place"] if best["place"] != best["tokens"] else ""}
        if is_corrected:
            row |= {name: best[f"best_{name}"] for name in _EFFECT}
        if not is_found:
            row |= dict.fromkeys((*_CELL, *_EFFECT)) | {"place": ""}
        row |= {"found": is_found, "n_cells": len(group)}
        found.append(row | {"n_significant": int((group["p_adjusted"] < SIGNIFICANT).sum())})
    return pd.DataFrame(found)


def grouped_tokens(rows: pd.DataFrame) -> "pd.Series[str]":
    """The token group of each row, with all single patches as one group."""
    tokens = rows["tokens"].astype("str")
    return tokens.where(~tokens.str.startswith("patch("), "patches")
