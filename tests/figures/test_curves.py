"""Curves by layer: knockout, skip, transplant."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from figures.curves import draw_curves
from figures.style import SERIES, WIDTHS, figure_of, series_numbers
from tests.figures.tables import patch_table

KNOCKOUT = patch_table(op="knockout", tokens=("image->question", "image->last"), window="0-4")
SKIP = patch_table(op="skip", tokens=("image", "question"), window="{0}-3")
TRANSPLANT = patch_table(op="transplant", tokens=("",), names=("weights",), window="0-{0}")
TABLES = {"knockout": KNOCKOUT, "skip": SKIP, "transplant": TRANSPLANT}
LABELS = {
    "knockout": {"image->question": "image → question", "image->last": "image → last"},
    "skip": {"image": "image", "question": "question"},
    "transplant": {"": "recipient with donor's layers"},
}


@pytest.mark.parametrize("op", TABLES)
def test_curves_pass_through_the_values_with_their_intervals_between_two_levels(op: str) -> None:
    results = TABLES[op]
    panels = draw_curves(results)
    assert [panel.get_ylabel() for panel in panels] == ["logit difference (logits)", "accuracy of the answer"]
    for panel, metric in zip(panels, ("logit_difference", "accuracy"), strict=True):
        numbers = series_numbers(list(LABELS[op]))
        for number, (tokens, label) in zip(numbers, LABELS[op].items(), strict=True):
            rows = results[(results["tokens"] == tokens) & (results["metric"] == metric)]
            (curve,) = [line for line in panel.lines if line.get_label() == label]
            np.testing.assert_allclose(np.asarray(curve.get_xydata(), dtype=float)[:, 0], rows["layer"].astype(int))
            np.testing.assert_allclose(np.asarray(curve.get_xydata(), dtype=float)[:, 1], rows["value"])
            (band,) = [
                c for c in panel.collections
                if to_hex(c.get_facecolor()[0]).upper() == SERIES[number] and c.get_paths()
            ]  # fmt: skip
            heights = set(np.round(band.get_paths()[0].vertices[:, 1], 6))
            assert heights == set(np.round(np.r_[rows["lower"], rows["upper"]], 6))
        names = ("donor", "recipient") if op == "transplant" else ("clean run", "corrupt run")
        levels = {line.get_label(): line.get_ydata()[0] for line in panel.lines}
        assert [levels[name] for name in names] == [3.0, -1.0]


def _twice(*windows: str) -> np.ndarray:
    return np.repeat(windows, 2)  # a row for each of two metrics


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (KNOCKOUT, "layer, from 0 (window 5)"),
        (SKIP, "layer l, from 0 (window l to 3)"),
        (TRANSPLANT, "layer l, from 0 (window 0 to l)"),
        (patch_table(op="skip", tokens=("image",)), "layer, from 0"),
        (
            KNOCKOUT.assign(window=np.resize(_twice("0-8", "1,3-4", "0-1", "2-5"), len(KNOCKOUT))),
            "layer, from 0 (window 9)",
        ),
        (
            KNOCKOUT.assign(window=np.resize(_twice("0-3", "2", "0-1", "0-2"), len(KNOCKOUT))),
            "layer, from 0 (window varying)",
        ),
    ],
)
def test_axis_tells_the_layers_and_what_a_window_holds(results: pd.DataFrame, expected: str) -> None:
    assert draw_curves(results)[0].get_xlabel() == expected


@pytest.mark.parametrize("width", ["one", "two"])
def test_one_legend_stands_outside_the_panels_and_names_the_interval(width: str) -> None:
    panels = draw_curves(KNOCKOUT, width=width)  # type: ignore[arg-type]
    figure = figure_of(panels)
    assert figure.get_figwidth() == WIDTHS[width]
    (legend,) = figure.legends
    figure.canvas.draw()
    assert not any(legend.get_window_extent().overlaps(panel.get_window_extent()) for panel in panels)
    words = [text.get_text() for text in legend.get_texts()]
    assert set(words) == {"clean run", "corrupt run", "image → question", "image → last", "95 % interval"}


def test_curves_of_several_runs_can_share_a_figure_of_the_caller() -> None:
    figure, axes = plt.subplots(2, 2)
    assert draw_curves(KNOCKOUT, axes=axes[0], legend=False) == list(axes[0])
    assert draw_curves(TRANSPLANT, axes=axes[1]) == list(axes[1])
    assert not figure.legends and axes[0, 1].get_legend() is None and axes[1, 1].get_legend() is not None
    with pytest.raises(ValueError, match="axes must contain 2 Axes, one for each of logit_difference, accuracy, got 1"):
        draw_curves(KNOCKOUT, axes=axes[0, 0])


def test_a_table_without_layers_raises() -> None:
    with pytest.raises(ValueError, match="must contain at least one row with a layer, got none"):
        draw_curves(patch_table(layers=(None,)))


def test_a_table_whose_empty_text_is_nan_is_drawn_the_same() -> None:
    guessed = TRANSPLANT.assign(tokens=np.nan)
    labels = [[line.get_label() for line in draw_curves(table)[0].lines] for table in (TRANSPLANT, guessed)]
    assert labels[0] == labels[1]
