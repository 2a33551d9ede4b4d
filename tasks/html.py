"""Tables of strings as HTML, for notebooks. Every string is escaped."""

from collections.abc import Sequence
from html import escape


def rows_html(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    caption: str = "",
    right: Sequence[bool] | None = None,
) -> str:
    """A table of strings as HTML.

    Args:
        headers: Column headers.
        rows: Each as long as ``headers``.
        title: Text above the table.
        caption: Text below it.
        right: True for each right-aligned column; None aligns all to the left.
    """
    styles = [f' style="text-align:{"right" if is_right else "left"}"' for is_right in right or [False] * len(headers)]

    def line(tag: str, cells: Sequence[str]) -> str:
        found = zip(styles, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{style}>{escape(cell)}</{tag}>" for style, cell in found) + "</tr>"

    head, body = line("th", headers), "".join(line("td", row) for row in rows)
    return (
        (f"<p><b>{escape(title)}</b></p>" if title else "")
        + f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        + (f"<p><small>{escape(caption)}</small></p>" if caption else "")
    )
