"""The table at the end of a patch sweep: where each group of positions matters most.

``summarise(results)`` makes the rows, ``render_summary`` a table for the terminal. Both read saved results only.
"""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from figures.effects import SIGNIFICANT, fraction_name, with_effect

_GROUPED = ("part", "name", "tokens", "metric")
_KEPT = (
    *_GROUPED, "layer", "window", "head", "value", "lower", "upper", "clean", "corrupt", "effect", "effect_lower",
    "effect_upper", "p_adjusted", "n", "n_undefined",
)  # fmt: skip
_SHORT = {"logit_difference": "logit diff.", "log_prob": "log prob."}


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each activation, token group (single patches as one) and metric: its cell with the largest effect.

    The effect is that of ``figures.effects``; ``n_significant`` counts cells whose adjusted p is below 0.05.
    """
    rows = with_effect(results).assign(
        tokens=results["tokens"].where(~results["tokens"].str.startswith("patch("), "patches"), place=results["tokens"]
    )
    base = rows["clean"].where(rows["unchanged"] == "clean", rows["corrupt"])
    rows = rows.assign(change=(rows["value"] - base).abs())
    found = []
    for _, group in rows.groupby(list(_GROUPED), sort=False):
        size = group["effect"].abs()
        # Without a fraction, the cell with the largest change of the metric.
        best = group.iloc[
            int((size if size.notna().any() else group["change"]).to_numpy(dtype=float, na_value=-1).argmax())
        ]
        found.append(
            {
                **{name: best[name] for name in _KEPT},
                "place": best["place"] if best["place"] != best["tokens"] else "",
                "n_cells": len(group),
                "n_significant": int((group["p_adjusted"] < SIGNIFICANT).sum()),
            }
        )
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
            f"{effect}: share of the difference between clean and corrupt run, with its 95 % interval; value: mean of "
            "the metric in that cell; undef.: pairs whose clean and corrupt run do not differ; cells: those whose p, "
            "adjusted for all, is below 0.05, of all in the group"
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
            "-" if pd.isna(row["layer"]) else str(int(row["layer"])),
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
