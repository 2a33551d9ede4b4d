"""The palette under colour blindness and in grey, and how figures are saved."""

import itertools
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from figures.effect_grid import draw_token_map
from figures.style import (
    COLOURS,
    DIVERGING,
    LINES,
    OPEN,
    PLAN_MARKERS,
    SEQUENTIAL,
    SERIES,
    SERIES_MARKERS,
    WIDTHS,
    figure_of,
    plan_colour,
    plan_marker,
    save_figure,
    style,
)
from tests.figures.tables import patch_table

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
# IEEE TVCG 15(6), severity 1.0; they act on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}
# In CIE76 (distance in CIELAB) 2.3 is just noticeable side by side; lines and small markers far apart need much more.
APART = 20.0
LINE_CONTRAST = 3.0  # that WCAG 2.2 asks of graphics (1.4.11)
_XYZ = np.array(  # of linear sRGB, IEC 61966-2-1
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# What can stand in one figure.
TOGETHER = {
    "score by layer": [COLOURS[name] for name in ("score", "transfer", "control", "random_init", "pixels", "chance")],
    "curves": [*SERIES, COLOURS["clean"], COLOURS["corrupt"]],
    "plans": [*{plan_colour(plan): plan for plan in PLAN_MARKERS}, COLOURS["chance"]],
    "cost ratios": [COLOURS[name] for name in ("muted", "control", "score", "chance")],
}


def lab(colour: object, sight: str = "usual") -> np.ndarray:
    """CIELAB of a colour as it is seen, white point D65."""
    rgb = np.array(to_rgb(colour))  # type: ignore[arg-type]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / _XYZ.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: object, other: object, sight: str) -> float:
    return float(np.linalg.norm(lab(one, sight) - lab(other, sight)))


def test_the_simulation_makes_red_and_green_alike_and_leaves_grey_alone() -> None:
    red, green = "#C85C00", "#5E8A00"
    assert distance(red, green, "usual") > 50
    assert distance(red, green, "deuteranopia") < 12
    for sight in SIGHT:
        np.testing.assert_allclose(lab("#808080", sight), lab("#808080"), atol=0.1)
    np.testing.assert_allclose(lab("#FF0000"), [53.24, 80.09, 67.20], atol=0.02)  # known values of sRGB red


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """The ratio of two colours' luminances, from 1 to 21.

    Source: W3C 2023, Web Content Accessibility Guidelines 2.2, "contrast ratio" and "relative luminance".
    """
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_lines_and_marks_have_the_contrast_on_paper_that_wcag_asks_of_graphics() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#EFA60B", "#ffffff") == pytest.approx(2.07, abs=0.01)  # an amber that is too faint
    drawn = {name: COLOURS[name] for name in (*LINES, "muted")} | {colour: colour for colour in SERIES}
    drawn |= {plan: plan_colour(plan) for plan in PLAN_MARKERS}
    assert {name: contrast(c, "#ffffff") for name, c in drawn.items() if contrast(c, "#ffffff") < LINE_CONTRAST} == {}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("figure", TOGETHER)
def test_colours_of_one_figure_stay_apart(figure: str, sight: str) -> None:
    colours = TOGETHER[figure]
    assert len(set(colours)) == len(colours)
    close = {
        (one, other): round(distance(one, other, sight), 1)
        for one, other in itertools.combinations(colours, 2)
        if distance(one, other, sight) < APART
    }
    assert not close


@pytest.mark.parametrize("sight", SIGHT)
def test_ends_and_middle_of_the_diverging_map_stay_apart(sight: str) -> None:
    colours = [mpl.colormaps[DIVERGING](place) for place in (0.0, 0.25, 0.5, 0.75, 1.0)]
    shades = [*colours, COLOURS["undefined"]]
    pairs = [pair for pair in itertools.combinations(shades, 2) if pair != (colours[2], COLOURS["undefined"])]
    assert all(distance(one, other, sight) > APART for one, other in pairs)


@pytest.mark.parametrize("sight", SIGHT)
def test_lightness_of_the_sequential_map_rises_all_the_way(sight: str) -> None:
    lightness = [lab(mpl.colormaps[SEQUENTIAL](place), sight)[0] for place in np.linspace(0, 1, 21)]
    assert min(np.diff(lightness)) > 1.0


def test_in_grey_line_style_or_marker_tells_what_colour_told() -> None:
    for concepts in (("score", "transfer", "control", "random_init", "pixels", "chance"), ("clean", "corrupt")):
        assert len({(str(LINES[name]), name in OPEN) for name in concepts}) == len(concepts)
    assert len(set(SERIES_MARKERS)) == len(SERIES)
    assert not any(marker for name, (_, marker) in LINES.items() if name in ("clean", "corrupt"))
    assert len({plan_marker(plan) for plan in PLAN_MARKERS}) == len(PLAN_MARKERS)


def test_in_grey_every_line_stands_out_from_paper() -> None:
    shades = {name: lab(COLOURS[name])[0] for name in LINES} | {colour: lab(colour)[0] for colour in SERIES}
    assert {name: round(light) for name, light in shades.items() if light > 76} == {}


def test_saved_files_have_the_width_that_was_asked_for_and_are_the_same_every_time(tmp_path: Path) -> None:
    for width in ("one", "two"):
        saved = []
        for name in ("a", "b"):
            paths = save_figure(draw_token_map(patch_table(), width=width), tmp_path / name / width)  # type: ignore[arg-type]
            saved.append((paths.png.read_bytes(), paths.svg.read_bytes()))
        assert saved[0] == saved[1]
        with Image.open(paths.png) as image:
            assert image.width == pytest.approx(WIDTHS[width] * 200, abs=1)
        assert f'width="{WIDTHS[width] * 72:g}pt"' in paths.svg.read_text()


def test_a_figure_of_the_caller_is_saved_with_all_that_stands_beside_its_panels(tmp_path: Path) -> None:
    _, ax = plt.subplots(figsize=(2, 2))
    ax.text(1.5, 0.5, "outside")
    with Image.open(save_figure(ax, tmp_path / "own").png) as image:
        assert image.width > 2 * 200
    ax.remove()
    with pytest.raises(ValueError, match="drawn must belong to a figure"):
        figure_of(ax)


def test_the_readers_own_look_is_back_after_the_block() -> None:
    before = dict(mpl.rcParams)
    with style():
        assert mpl.rcParams["font.size"] != before["font.size"]
    assert dict(mpl.rcParams) == before


def test_a_notebook_that_became_interactive_in_the_block_stays_so() -> None:
    before = mpl.is_interactive()
    try:
        mpl.interactive(False)
        with style():
            mpl.interactive(True)  # what the backend of notebooks does when the first figure is made
        assert mpl.is_interactive()
    finally:
        mpl.interactive(before)
