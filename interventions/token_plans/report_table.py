"""The table at the end of ``inference-cost``, from the saved results."""

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table


def render_summary(results: pd.DataFrame) -> Table:
    """One row for each plan: its price relative to the full model, and what it keeps; for the first split."""
    split = str(results["split"].iloc[0])
    rows = results[results["split"] == split]
    first = rows.iloc[0]
    timed = bool(rows["prefill_time_ratio"].notna().any())
    table = Table(
        title=escape(f"{first['model']}, {int(first['n'])} questions ({split}): token plans against the full model"),
        caption=(
            "prefill, cache: closed form of the language model, keys of frozen tokens included; time: prefill measured "
            "in turn; decode: time of a token; kept: accuracy relative to all, with its 95 % interval over pictures; "
            "same: share of equal texts; kl: of the answer's first token, nats; -: none"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("plan", overflow="fold")
    times = ("time", "decode") if timed else ()
    for header in ("prefill", *times, "cache", "accuracy", "kept", "95 %", "same", "kl"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        table.add_row(
            escape(str(row["plan"])),
            _number(row["prefill_ratio"]),
            *((_number(row["prefill_time_ratio"]), _number(row["decode_time_ratio"])) if timed else ()),
            _number(row["cache_ratio"]),
            f"{row['accuracy']:.3f}",
            _number(row["kept"]),
            "-" if pd.isna(row["kept_lower"]) else f"{row['kept_lower']:.2f}..{row['kept_upper']:.2f}",
            _number(row["agreement"]),
            f"{row['kl']:.3f}",
        )
    return table


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"
