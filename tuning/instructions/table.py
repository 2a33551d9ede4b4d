"""The results of ``generate-instructions``: one row for each kind, and one for all."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from tasks.chat_server import Reply

_DUPLICATE = "near duplicate"
Row = tuple[str, Reply, int, str]  # kind, reply, turns, reason of the refusal


def tabulate(rows: Sequence[Row], n_skipped: int) -> pd.DataFrame:
    """What was asked, what became of it, and what it took; ``docs/results.md`` describes the columns.

    ``n_skipped`` pictures were left out of the file; the row ``all`` has their number.

    Example:
        >>> reply = Reply("k", "1", "answered", "...", prompt_tokens=9, completion_tokens=5)
        >>> tabulate([("detail", reply, 1, ""), ("detail", reply, 0, "cut")], 0)["refused"].tolist()
        [1, 1]
    """
    kinds = list(dict.fromkeys(kind for kind, *_ in rows))
    order = [kind for kind in ("conversation", "detail", "reasoning") if kind in kinds]
    return pd.DataFrame(
        [_row(kind, [row for row in rows if kind in ("all", row[0])], n_skipped) for kind in [*order, "all"]]
    )


def _row(kind: str, rows: Sequence[Row], n_skipped: int) -> dict[str, Any]:
    refused = [reason for *_, reason in rows if reason and not reason.startswith(_DUPLICATE)]
    reasons = Counter(reason.partition(" (")[0].partition(":")[0] for reason in refused)
    replies = {reply.key: reply for _, reply, *_ in rows}.values()  # equal requests are sent once
    return {
        "kind": kind,
        "asked": len(rows),
        "samples": sum(not reason for *_, reason in rows),
        "turns": sum(turns for *_, turns, reason in rows if not reason),
        "refused": len(refused),
        "duplicates": sum(reason.startswith(_DUPLICATE) for *_, reason in rows),
        "most_frequent_reason": reasons.most_common(1)[0][0] if reasons else "",
        "skipped_pictures": n_skipped if kind == "all" else 0,
        "prompt_tokens": sum(reply.prompt_tokens or 0 for reply in replies),
        "completion_tokens": sum(reply.completion_tokens or 0 for reply in replies),
        "attempts": sum(reply.attempts for reply in replies),
        "seconds": round(sum(reply.seconds for reply in replies), 3),
        "cost": sum(reply.cost for reply in replies),
    }


def render_summary(results: pd.DataFrame) -> Table:
    """A short table for people."""
    table = Table(
        caption="tokens as the server counts them; seconds: sum over requests, which run several at a time",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("kind")
    for header in ("asked", "samples", "turns", "refused", "duplicates", "tokens in", "out", "seconds", "$"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("most frequent reason", overflow="fold")
    for row in results.to_dict("records"):
        counts = (
            row[n] for n in ("asked", "samples", "turns", "refused", "duplicates", "prompt_tokens", "completion_tokens")
        )
        table.add_row(
            row["kind"],
            *(f"{int(count):,}" for count in counts),
            f"{row['seconds']:.1f}",
            f"{row['cost']:.4f}",
            escape(str(row["most_frequent_reason"])),
        )
    return table
