"""Results in a notebook: the terminal's table as HTML, with the figure below it. Every string is escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tasks.html import rows_html

INLINE_BELOW = 150_000  # bytes of a picture; a notebook file stores every picture that it shows
_WIDEST = 1100  # pixels of a reduced picture: about the width of a notebook's cell
_COLOURS = 64  # colours of a reduced picture; a diagram has a dozen, and blends of them at edges


def table_html(table: Table) -> str:
    """A rich table as HTML, with its title, caption and alignment."""
    return rows_html(
        [_plain(column.header) for column in table.columns],
        list(zip(*([_plain(cell) for cell in column.cells] for column in table.columns), strict=True)),
        title=_plain(table.title or ""),
        caption=_plain(table.caption or ""),
        right=[column.justify == "right" for column in table.columns],
    )


def run_html(table: Table, *, figure: Path | None, folder: Path, notes: Sequence[str] = ()) -> str:
    """A finished run as HTML: its table, its figure (a PNG file) if it exists and is small enough, folder and notes."""
    shown = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f"<div>{table_html(table)}{shown}{picture_html(figure)}<p>Files: <code>{escape(str(folder))}</code></p></div>"
    )


def picture_html(png: Path | None) -> str:
    """A picture as an HTML tag: unchanged; reduced if it is too large; only its path if that does not suffice."""
    if png is None or not png.is_file():
        return ""
    data = png.read_bytes()
    if len(data) > INLINE_BELOW:
        data = _smaller(data)
    if len(data) > INLINE_BELOW:
        return f"<p>Figure: <code>{escape(str(png))}</code></p>"
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<img alt="{escape(png.stem.replace("_", " "))}" style="max-width:100%" src="data:image/png;base64,{encoded}">'
    )


def _smaller(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        shown = image.convert("RGB")
    shown.thumbnail((_WIDEST, 4 * _WIDEST), Image.Resampling.LANCZOS)
    shown.quantize(_COLOURS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _plain(cell: RenderableType) -> str:
    """The text of a cell."""
    return cell.plain if isinstance(cell, Text) else str(cell)
