"""What a notebook shows of sites and activations: names, shapes with their axes, types; all of it as text."""

import re
from html import unescape

import pytest
import torch

from models.activations import Activations, Captured, activations_html
from models.capture import capture_examples
from models.llava import Llava
from models.sites import Site, all_sites
from tests.conftest import make_examples


def cells(html: str) -> list[list[str]]:
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in html.split("<tr>")[2:]]


def test_every_site_of_a_model_shows_its_name_and_a_meaning_of_its_own(llava: Llava) -> None:
    shown = [site._repr_html_() for site in all_sites(llava)]
    assert all(f"<code>{site}</code>" in html for site, html in zip(all_sites(llava), shown, strict=True))
    assert len(set(shown)) == len(shown)
    assert not any(html.endswith(f": {site.name}") for site, html in zip(all_sites(llava), shown, strict=True))
    assert Site("language_model", 2, "resid_post")._repr_html_() == (
        "<code>blocks.2.hook_resid_post</code> language model, block 2: residual stream after the block"
    )


def test_activations_show_shapes_axes_positions_and_types() -> None:
    resid, z = Site("language_model", 1, "resid_post"), Site("language_model", 1, "z")
    mask = torch.tensor([[True, True, False], [True, True, True]])
    values = Activations(
        {resid: torch.zeros(2, 8), z: torch.zeros(2, 3, 4, 2, dtype=torch.float16)}, {z: mask}, {z: mask.long()}
    )
    html = values._repr_html_()
    assert cells(html) == [
        [str(resid), "2 x 8", "example d_model", "one an example", "float32", "cpu"],
        [str(z), "2 x 3 x 4 x 2", "example pos head d_head", "5 of 6", "float16", "cpu"],
    ]
    assert "at 2 sites" in html
    assert "Examples 4, 7" in Captured((4, 7), values)._repr_html_()


def test_values_of_another_shape_get_no_axes() -> None:
    site = Site("language_model", 1, "resid_post")
    assert cells(activations_html({site: torch.zeros(2, 3, 8)}, {}))[0][1:3] == ["2 x 3 x 8", ""]


def test_markup_is_shown_as_text() -> None:
    markup = '<b>"x"</b>'
    html = activations_html({markup: torch.zeros(1, 2)}, {})
    assert "<b>" not in html.replace("<b>Activations</b>", "")
    assert markup in unescape(html)


@pytest.mark.parametrize("n_questions", [1, 2])
def test_capturing_examples_reports_every_example_once(llava: Llava, n_questions: int) -> None:
    told: list[tuple[str, int, int]] = []
    examples = make_examples(5, n_questions=n_questions)
    site = Site("language_model", 0, "resid_post")
    batches = capture_examples(
        llava, examples, [site], tokens="image", batch_size=2, on_progress=lambda *report: told.append(report)
    )
    assert told == []  # nothing is captured yet
    next(batches)
    assert len(told) == 1
    list(batches)
    assert {(stage, total) for stage, _, total in told} == {("capturing", 5)}
    assert sum(done for _, done, _ in told) == 5
