"""Maps of effects by layer: of token groups and of heads."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from figures.effect_grid import draw_head_map, draw_token_map
from figures.style import COLOURS, WIDTHS, figure_of
from tests.figures.tables import patch_table


def grids(panels: list[Axes]) -> list[np.ndarray]:
    return [np.asarray(panel.images[-1].get_array(), dtype=float) for panel in panels]


def bar_of(panels: list[Axes]) -> Axes:
    (bar,) = [panel for panel in figure_of(panels).axes if panel.get_label() == "<colorbar>"]
    return bar


def test_cells_of_the_map_are_the_recovered_fractions_of_the_table() -> None:
    results = patch_table()
    (panel,) = draw_token_map(results)
    expected = results[results["metric"] == "logit_difference"]["recovered"].to_numpy().reshape(3, 4)
    np.testing.assert_allclose(grids([panel])[0], expected)
    assert [text.get_text() for text in panel.get_yticklabels()] == ["image", "question", "last"]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "1", "2", "3"]
    assert figure_of(panel).get_figwidth() == WIDTHS["two"]
    assert figure_of(draw_token_map(results, width="one")).get_figwidth() == WIDTHS["one"]


def test_marks_stand_on_significant_cells_and_their_shape_tells_the_sign() -> None:
    results = patch_table()
    results["recovered"] *= np.where(results["tokens"] == "last", -1.0, 1.0)
    (panel,) = draw_token_map(results)
    marks = {
        (float(x), float(y)): line.get_marker() for line in panel.lines for x, y in line.get_xydata()
    }  # fmt: skip
    names = ["image", "question", "last"]
    rows = results[(results["metric"] == "logit_difference") & (results["p_adjusted"] < 0.05)]
    assert marks == {
        (float(layer), float(names.index(tokens))): "_" if tokens == "last" else "."
        for layer, tokens in zip(rows["layer"], rows["tokens"], strict=True)
    }
    assert set(marks.values()) == {"_", "."}


def test_runs_that_start_from_clean_show_the_lost_fraction() -> None:
    panels = draw_token_map(patch_table(op="knockout", tokens=("image->last",)))
    np.testing.assert_allclose(grids(panels)[0], [[1.0, 0.95, 0.9, 0.85]])
    assert bar_of(panels).get_ylabel() == "lost fraction of\nlogit difference"
    assert bar_of(draw_token_map(patch_table())).get_ylabel().startswith("recovered fraction")


def test_colours_are_symmetric_around_no_effect_and_beyond_their_range_announced() -> None:
    results = patch_table()
    for factor, half, pointed in ((1.0, 0.55, False), (10.0, 2.0, True), (1e-3, 0.1, False)):
        panels = draw_token_map(results.assign(recovered=-factor * results["recovered"]))
        np.testing.assert_allclose(panels[0].images[0].get_clim(), (-half, half))
        assert (bar_of(panels)._colorbar.extend == "both") == pointed  # type: ignore[attr-defined]


def test_undefined_cells_are_grey() -> None:
    results = patch_table()
    results.loc[results["layer"] == 2, "recovered"] = np.nan
    image = draw_token_map(results)[0].images[0]
    shown = image.to_rgba(image.get_array())
    grey = int(COLOURS["undefined"][1:3], 16) / 255
    np.testing.assert_allclose(shown[:, 2, :3], grey, atol=0.01)
    assert not np.allclose(shown[:, 1, :3], grey, atol=0.05)


def test_map_of_another_metric_is_drawn_on_request_and_an_unknown_one_refused() -> None:
    results = patch_table()
    results.loc[results["metric"] == "accuracy", "recovered"] = 0.125
    np.testing.assert_allclose(grids(draw_token_map(results, metric="accuracy"))[0], 0.125)
    with pytest.raises(ValueError, match="metric must be one of logit_difference, accuracy, got 'kl'"):
        draw_token_map(results, metric="kl")
    with pytest.raises(ValueError, match="at least one row"):
        draw_head_map(results)


def test_every_activation_has_a_panel_and_the_projector_a_column_without_a_layer() -> None:
    projector = patch_table(names=("out",), layers=(None,), tokens=("image",)).assign(part="projector")
    results = pd.concat([patch_table(names=("resid_pre", "z")), projector])
    panels = draw_token_map(results)
    assert [panel.get_title(loc="left") for panel in panels] == ["resid_pre", "z", "projector out"]
    assert [grid.shape for grid in grids(panels)] == [(3, 4), (3, 4), (1, 1)]
    assert [text.get_text() for text in panels[2].get_xticklabels()] == ["-"]


def test_heads_go_down_in_a_map_of_heads_and_hold_the_values_of_the_table() -> None:
    results = pd.concat([patch_table(tokens=("last",), heads=("0", "1", "2"), names=("z",)), patch_table()])
    (panel,) = draw_head_map(results)
    rows = results[results["head"].notna() & (results["metric"] == "logit_difference")]
    np.testing.assert_allclose(grids([panel])[0], rows["recovered"].to_numpy().reshape(3, 4))
    assert panel.get_title(loc="left") == "z, last"
    assert [text.get_text() for text in panel.get_yticklabels()] == ["0", "1", "2"]
    assert panel.get_ylabel() == "head, from 0"


def test_a_table_read_from_csv_is_drawn_as_the_one_from_parquet() -> None:
    """Where pandas guesses the types, empty text is NaN and a column of heads floats."""
    results = patch_table(tokens=("last",), heads=("0", "1", "2"), names=("z",))
    guessed = results.astype({"head": float, "layer": float})
    (one,), (other,) = draw_head_map(results), draw_head_map(guessed)
    np.testing.assert_array_equal(grids([one])[0], grids([other])[0])
    assert [t.get_text() for t in one.get_yticklabels()] == [t.get_text() for t in other.get_yticklabels()]


def test_maps_are_drawn_into_axes_of_the_caller_with_the_bar_beside_them() -> None:
    figure, axes = plt.subplots(2, 1)
    panels = draw_token_map(patch_table(names=("resid_pre", "z")), axes=axes)
    assert panels == list(axes)
    assert bar_of(panels).get_figure() is figure
    _, ax = plt.subplots()
    assert draw_token_map(patch_table(), axes=ax, legend=False) == [ax]
    assert len(figure_of(ax).axes) == 1
    with pytest.raises(ValueError, match="axes must contain 1 Axes, one for each of resid_pre, got 2"):
        draw_token_map(patch_table(), axes=axes)


@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("n_layers", [3, 32, 40])
def test_no_two_labels_of_layers_overlap(n_layers: int, width: str) -> None:
    panels = draw_token_map(patch_table(layers=range(n_layers)), width=width)  # type: ignore[arg-type]
    figure_of(panels).canvas.draw()
    boxes = [text.get_window_extent() for text in panels[0].get_xticklabels()]
    assert len(boxes) >= 3
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
