"""The table at the end of a patch sweep: where each group of positions matters most.

``summarise(results)`` makes the rows, ``render_summary`` a table for the terminal. Both read saved results only.
"""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from figures.effects import fraction_name, of_earlier_version
from figures.findings.largest_effects import summarise

__all__ = ["render_summary", "summarise"]

_SHORT = {"logit_difference": "logit diff.", "log_prob": "log prob.", "cider": "CIDEr"}


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
            "both corrected for the choice of the cell and for its being named; layer none: no cell is significant at "
            "5 %, corrected for the choice among all cells; value: mean of the metric in that cell; undef.: pairs "
            "whose clean and corrupt run do not differ; cells: those whose p, adjusted for all, is below 0.05, of all "
            "in the group" + of_earlier_version(results)
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
            "-" if pd.isna(row["effect_lower"]) else f"{row['effect_lower']:.2f}..{row['effect_upper']:.2f}",
            _number(row["value"]),
            _number(row["clean"]),
            _number(row["corrupt"]),
            f"{int(row['n_undefined'])}/{int(row['n'])}",
            f"{row['n_significant']}/{row['n_cells']}",
        )
    return table


def _number(value: object) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"  # type: ignore[call-overload]
