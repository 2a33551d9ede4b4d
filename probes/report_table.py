"""The summary of a sweep as a table for the terminal: peak layer, onset layer and transfer score of each target."""

from collections.abc import Hashable, Mapping

import pandas as pd
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from figures.effects import of_earlier_version
from figures.findings.peaks import NONE, ONSET_SHARE, SIGNIFICANT, curve_names, onset_row, summarise

__all__ = ["NONE", "curve_names", "onset_row", "render_summary", "summarise"]


def render_summary(results: pd.DataFrame) -> Table:
    """The summary as a table for the terminal."""
    summary = summarise(results)
    splits = [split for split in dict.fromkeys(results["split"]) if split != "cv"]
    metrics = ", ".join(dict.fromkeys(str(metric).replace("_", " ") for metric in summary["metric"]))
    table = Table(
        title=escape(f"What probes read from {results['model'].iloc[0]} ({metrics})"),
        caption=(
            "peak: layer (from 0) with the best cross-validated score, in brackets the 95 % range of its place; "
            "score, 95 %: of probes at that layer on new groups, corrected for the choice of layer; "
            f"selec.: score minus control task; onset: first significant layer with {ONSET_SHARE:.0%} of the peak's "
            f"gain over chance; none: no layer is significant at {SIGNIFICANT:.0%}, corrected for the choice among all"
            + of_earlier_version(results)
        ),
        title_justify="left",
        caption_justify="left",
    )
    for header in ("target", "part", "activation"):
        table.add_column(header, no_wrap=True)
    for header in ("peak", "score", "95 %", "chance", "selec.", "rand. init", "onset", *splits[:1]):
        table.add_column(header, justify="right", no_wrap=True)
    previous = None
    for row in summary.to_dict("records"):
        if previous is not None and row["target"] != previous:
            table.add_section()
        cells: list[str | Text] = [
            Text(str(row["target"]) if row["target"] != previous else ""),  # the user's column name is not markup
            str(row["part"]).replace("_", " "),
            str(row["name"]),
            _range(row),
            _number(row["score"]),
            "-" if pd.isna(row["lower"]) else f"{row['lower']:.2f}-{row['upper']:.2f}",
            f"{row['chance']:.2f}",
            _number(row["selectivity"]),
            _number(row["random_init"]),
            str(row["onset"]),
        ]
        table.add_row(*cells, *([_number(row["transfer"])] if splits else []))
        previous = row["target"]
    return table


def _range(row: Mapping[Hashable, object]) -> str:
    """The peak, with the range of its place if that is more than one."""
    if row["peak_first"] == row["peak_last"]:
        return str(row["peak"])
    return f"{row['peak']} ({row['peak_first']}-{row['peak_last']})"


def _number(value: object) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"  # type: ignore[call-overload]
