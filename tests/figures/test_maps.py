import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from figures.maps import draw_curves, draw_head_map, draw_patch_map, draw_run_figures, draw_token_map
from figures.style import COLOURS, save_figure


def table(
    op: str = "patch",
    tokens: Sequence[str] = ("image", "question", "last"),
    heads: Sequence[str | None] = (None,),
    names: Sequence[str] = ("resid_pre",),
    layers: Sequence[int | None] = (0, 1, 2, 3),
    metrics: Sequence[str] = ("logit_difference", "accuracy"),
    window: str = "{0}",
) -> pd.DataFrame:
    """Recovered fractions that count up from 0 in steps of 0.05; clean is 3, corrupt is -1."""
    unchanged = "corrupt" if op in ("patch", "transplant") else "clean"
    rows = [
        {
            "model": "smol", "op": op, "part": "language_model", "name": name, "site": f"blocks.{layer}.hook_{name}",
            "layer": layer, "window": "" if layer is None else window.format(layer), "tokens": group, "head": head,
            "metric": metric,
            "clean": 3.0, "corrupt": -1.0, "unchanged": unchanged, "n": 20, "n_undefined": 0,
        }
        for name in names for group in tokens for head in heads for layer in layers for metric in metrics
    ]  # fmt: skip
    results = pd.DataFrame(rows).astype({"layer": "Int64"})
    results["recovered"] = (np.arange(len(results)) // len(metrics)) * 0.05
    results["value"] = 4.0 * results["recovered"] - 1.0
    results["lower"], results["upper"] = results["value"] - 0.1, results["value"] + 0.1
    results["p"] = results["p_adjusted"] = np.where(results["recovered"] > 0.2, 0.001, 0.5)
    return results


@pytest.fixture(autouse=True)
def closed() -> object:
    yield
    plt.close("all")


def grids(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(panel.images[-1].get_array(), dtype=float) for panel in figure.axes if panel.images]


def test_cells_of_the_map_are_the_recovered_fractions_of_the_table() -> None:
    results = table()
    figure = draw_token_map(results)
    (grid,) = grids(figure)
    expected = results[results["metric"] == "logit_difference"]["recovered"].to_numpy().reshape(3, 4)
    np.testing.assert_allclose(grid, expected)
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["image", "question", "last"]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "1", "2", "3"]
    assert sum(len(line.get_xdata()) for line in panel.lines) == (expected > 0.2).sum()  # dots


def test_runs_that_start_from_clean_show_the_lost_fraction() -> None:
    figure = draw_token_map(table(op="knockout", tokens=("image->last",)))
    np.testing.assert_allclose(grids(figure)[0], [[1.0, 0.95, 0.9, 0.85]])
    assert figure.axes[-1].get_ylabel().startswith("lost fraction")
    assert draw_token_map(table()).axes[-1].get_ylabel().startswith("recovered fraction")


def test_colours_are_symmetric_around_no_effect_and_beyond_their_range_announced() -> None:
    results = table()
    for factor, half, pointed in ((1.0, 0.55, False), (10.0, 2.0, True), (1e-3, 0.1, False)):
        figure = draw_token_map(results.assign(recovered=-factor * results["recovered"]))
        image = figure.axes[0].images[0]
        np.testing.assert_allclose(image.get_clim(), (-half, half))
        bar = next(panel for panel in figure.axes if panel.get_label() == "<colorbar>")
        assert (bar._colorbar.extend == "both") == pointed


def test_undefined_cells_are_grey() -> None:
    results = table()
    results.loc[results["layer"] == 2, "recovered"] = np.nan
    figure = draw_token_map(results)
    image = figure.axes[0].images[0]
    shown = image.to_rgba(image.get_array())
    grey = int(COLOURS["undefined"][1:3], 16) / 255
    np.testing.assert_allclose(shown[:, 2, :3], grey, atol=0.01)
    assert not np.allclose(shown[:, 1, :3], grey, atol=0.05)


def test_map_of_another_metric_is_drawn_on_request_and_an_unknown_one_refused() -> None:
    results = table()
    results.loc[results["metric"] == "accuracy", "recovered"] = 0.125
    np.testing.assert_allclose(grids(draw_token_map(results, metric="accuracy"))[0], 0.125)
    with pytest.raises(ValueError, match="metric must be one of logit_difference, accuracy, got 'kl'"):
        draw_token_map(results, metric="kl")
    with pytest.raises(ValueError, match="at least one row"):
        draw_run_figures(results.iloc[:0])


def test_every_activation_has_a_panel_and_the_projector_a_column_without_a_layer() -> None:
    results = pd.concat([table(names=("resid_pre", "z")), table(names=("out",), layers=(None,), tokens=("image",))])
    results.loc[results["name"] == "out", "part"] = "projector"
    figure = draw_token_map(results)
    assert [p.get_title(loc="left") for p in figure.axes if p.images] == ["resid_pre", "z", "projector: out"]
    assert [grid.shape for grid in grids(figure)] == [(3, 4), (3, 4), (1, 1)]


def test_heads_go_down_in_a_map_of_heads() -> None:
    results = table(tokens=("last",), heads=("0", "1", "2"), names=("z",))
    figure = draw_head_map(results)
    assert grids(figure)[0].shape == (3, 4)
    assert figure.axes[0].get_title(loc="left") == "z, last"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["head 0", "head 1", "head 2"]


def test_patches_stand_where_they_stand_in_the_picture() -> None:
    patches = [f"patch({r},{c})" for r in range(2) for c in range(3)]
    results = table(tokens=patches, layers=(1, 5))
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[:, 30:] = 255
    figure = draw_patch_map(results, picture)
    panels = [panel for panel in figure.axes if panel.images and panel.get_label() != "<colorbar>"]
    assert [panel.get_title() for panel in panels] == ["resid_pre 1", "resid_pre 5"]
    for panel, layer in zip(panels, (1, 5), strict=True):
        below, above = panel.images
        of_layer = results[(results["layer"] == layer) & (results["metric"] == "logit_difference")]
        np.testing.assert_allclose(above.get_array(), of_layer["recovered"].to_numpy().reshape(2, 3))
        assert below.get_extent() == above.get_extent()
        shade = np.asarray(below.get_array())
        assert shade[0, 0] < 0.01 and shade[0, -1] > 0.99
        alpha = np.asarray(above.get_alpha())
        assert alpha.argmax() == of_layer["recovered"].to_numpy().argmax()
    assert len(draw_patch_map(results).axes[0].images) == 1  # no picture, no background
    with pytest.raises(ValueError, match="--tokens patches"):
        draw_patch_map(table())


def test_curve_passes_through_the_values_with_its_interval_between_clean_and_corrupt() -> None:
    results = table(op="knockout", tokens=("image->question", "image->last"), window="0-4")
    figure = draw_curves(results)
    panel = figure.axes[0]
    curve = next(line for line in panel.lines if line.get_label() == "image → last")
    expected = results[(results["tokens"] == "image->last") & (results["metric"] == "logit_difference")]
    np.testing.assert_allclose(np.asarray(curve.get_ydata(), dtype=float), expected["value"])
    levels = {line.get_label(): line.get_ydata()[0] for line in panel.lines if "run" in str(line.get_label())}
    assert levels == {"clean run": 3.0, "corrupt run": -1.0}
    bands = [c for c in panel.collections if isinstance(c, FillBetweenPolyCollection)]
    spans = [band.get_paths()[0].vertices[:, 1] for band in bands]
    assert min(spans[1]) == pytest.approx(expected["lower"].min())
    assert max(spans[1]) == pytest.approx(expected["upper"].max())
    assert "window 5" in panel.get_xlabel()
    assert [panel.get_ylabel() for panel in figure.axes] == ["logit difference", "accuracy of the generated answer"]
    (legend,) = figure.legends
    figure.canvas.draw()
    assert not any(legend.get_window_extent().overlaps(panel.get_window_extent()) for panel in figure.axes)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (table(), ["token_map"]),
        (table(op="knockout", tokens=("image->last",)), ["token_map", "curves"]),
        (table(op="transplant", tokens=("",)), ["curves"]),
        (table(tokens=("last",), heads=("0", "1"), names=("z",)), ["head_map"]),
        (table(tokens=("patch(0,0)", "patch(0,1)")), ["patch_map"]),
        (table(tokens=("patch(0,0)", "patch(0,1)", "image")), ["token_map", "patch_map"]),
    ],
)
def test_figures_are_those_that_fit_the_table(results: pd.DataFrame, expected: list[str]) -> None:
    assert list(draw_run_figures(results)) == expected


@pytest.mark.parametrize("n_layers", [3, 32, 40])
def test_no_two_labels_of_layers_overlap(n_layers: int) -> None:
    figure = draw_token_map(table(layers=range(n_layers)))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert len(boxes) >= 3
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_saved_files_are_the_same_every_time(tmp_path: Path) -> None:
    saved = []
    for name in ("a", "b"):
        paths = save_figure(draw_token_map(table()), tmp_path / name / "figure")
        saved.append((paths.png.read_bytes(), paths.svg.read_bytes()))
    assert saved[0] == saved[1]
