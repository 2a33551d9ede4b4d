"""The table at the end of a patch sweep: where each group of positions matters most.

``summarise(results)`` makes the rows, ``render_summary`` a table for the terminal. Both read saved results only.
"""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from figures.effects import SIGNIFICANT, fraction_name, with_effect
from interventions.cell_statistics import grouped_tokens

_GROUPED = ("part", "name", "tokens", "metric")
_CELL = ("layer", "window", "head", "value", "lower", "upper", "p_adjusted", "p_max")  # empty without a best cell
_EFFECT = ("effect", "effect_lower", "effect_upper")
_KEPT = (
    *_GROUPED, *_CELL, "clean", "corrupt", *_EFFECT, "n", "n_undefined",
)  # fmt: skip
_SHORT = {"logit_difference": "logit diff.", "log_prob": "log prob."}


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


def render_summary(results: pd.DataFrame) -> Table:
    """The summary as a table for the terminal."""
    summary = summarise(results)
    first = results.iloc[0]
    effect = fraction_name(results).split()[0]
    table = Table(
        title=escape(
            f"{first['op']} on {first['model']}, {int(first['n'])} pair{'' if int(first['n']) == 1 else 's'}: "
            "the largest effect of each group"
        ),
        caption=(
            f"{effect}: share of the difference between clean and corrupt run, with its 95 % interval over pairs, "
            "both corrected for the choice of the cell; layer none: no cell is significant at 5 %, corrected for the "
            "choice among all cells; value: mean of the metric in that cell; undef.: pairs whose clean and corrupt run "
            "do not differ; cells: those whose p, adjusted for all, is below 0.05, of all in the group"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for header in ("activation", "tokens", "metric"):
        table.add_column(header, no_wrap=True)
    for header in ("layer", "head", effect, "95 %", "value", "clean", "corrupt", "undef.", "cells"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in summary.to_dict("records"):
        part = "" if row["part"] == "language_model" else f"{str(row['part']).split('_')[0]}:"
        table.add_row(
            f"{part}{row['name']}",
            f"{row['tokens']}{f' {place}' if (place := str(row['place']).removeprefix('patch')) else ''}",
            _SHORT.get(row["metric"], str(row["metric"])),
            "none" if not row["found"] else "-" if pd.isna(row["layer"]) else str(int(row["layer"])),
            "-" if pd.isna(row["head"]) else str(row["head"]),
            _number(row["effect"]),
            f"{_number(row['effect_lower'])}..{_number(row['effect_upper'])}",
            _number(row["value"]),
            _number(row["clean"]),
            _number(row["corrupt"]),
            f"{int(row['n_undefined'])}/{int(row['n'])}",
            f"{row['n_significant']}/{row['n_cells']}",
        )
    return table


def _number(value: object) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"  # type: ignore[call-overload]
