"""Tables and runs as HTML: what the terminal's table says, escaped, with a figure that is small."""

import base64
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table
from rich.text import Text

from records.html import INLINE_BELOW, picture_html, run_html, table_html

MARKUP = '<script>alert("1")</script> & [/bold]'


class Cells(HTMLParser):
    """The texts of all cells, row by row, and every tag that occurs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture
def table() -> Table:
    made = Table(title=f"title {MARKUP}", caption=f"caption {MARKUP}")
    made.add_column(f"head {MARKUP}")
    made.add_column("score", justify="right")
    made.add_row(Text(MARKUP), "0.95 [0.90, 1.00]")
    made.add_section()
    made.add_row("dog", "-")
    return made


def picture(path: Path, *, noise: bool, width: int = 40) -> Path:
    pixels = np.zeros((width, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = (200, 30, 90)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)
    return path


def inlined(html: str) -> bytes:
    found = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert found is not None
    return base64.b64decode(found[1], validate=True)


def test_the_cells_are_those_of_the_table_and_numbers_stay_right_aligned(table: Table) -> None:
    shown = table_html(table)
    assert Cells(shown).rows == [[f"head {MARKUP}", "score"], [MARKUP, "0.95 [0.90, 1.00]"], ["dog", "-"]]
    assert re.findall(r'<td style="text-align:(\w+)">', shown) == ["left", "right", "left", "right"]


def test_markup_is_shown_as_text_wherever_it_stands(table: Table, tmp_path: Path) -> None:
    shown = run_html(table, figure=None, folder=tmp_path / MARKUP, notes=[f"note {MARKUP}"])
    assert unescape(shown).count(MARKUP) == 6  # title, caption, header, cell, note, folder
    assert "script" not in Cells(shown).tags
    assert "<script" not in shown


def test_a_small_picture_is_inside_the_page_as_it_is(table: Table, tmp_path: Path) -> None:
    png = picture(tmp_path / "score.png", noise=False)
    assert inlined(run_html(table, figure=png, folder=tmp_path)) == png.read_bytes()


def test_a_large_diagram_is_made_smaller_and_keeps_its_colours(tmp_path: Path) -> None:
    png = picture(tmp_path / "score.png", noise=False, width=1600)
    assert png.stat().st_size > INLINE_BELOW
    data = inlined(picture_html(png))
    assert len(data) <= INLINE_BELOW
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (1100, 1100)
        shown = np.asarray(small.convert("RGB"))
    np.testing.assert_allclose(shown[500, [10, -10]], [[0, 0, 0], [200, 30, 90]], atol=3)  # quantised


def test_a_picture_that_stays_large_is_named_and_one_that_is_gone_left_out(tmp_path: Path) -> None:
    png = picture(tmp_path / "a<b.png", noise=True, width=700)
    shown = picture_html(png)
    assert "<img" not in shown
    assert str(png) in unescape(shown)
    assert "a<b" not in shown
    assert picture_html(tmp_path / "gone.png") == picture_html(None) == ""
