import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from figures.layer_axis import main_name, names_in_blocks, place_parts
from figures.score_by_layer import draw_score_by_layer
from figures.style import COLOURS, WIDTHS, figure_of
from tests.figures.tables import probe_table


def drawn(panel: Axes, concept: str) -> np.ndarray:
    """What all lines of a concept's colour show, in the order of the forward pass."""
    lines = [line for line in panel.lines if line.get_color() == COLOURS[concept] and len(line.get_xdata()) > 0]
    lines = [line for line in lines if list(line.get_xdata()) != [0, 1]]  # levels go from edge to edge
    points = np.concatenate([line.get_xydata() for line in lines])
    return points[np.argsort(points[:, 0])]


@pytest.mark.parametrize("concept", ["score", "transfer", "control", "random_init"])
def test_every_curve_passes_through_its_column_of_the_table(concept: str) -> None:
    results = probe_table()
    panels = draw_score_by_layer(results)
    for panel, target in zip(panels, ("kind", "count"), strict=True):
        split = "unseen" if concept == "transfer" else "cv"
        rows = results[(results["target"] == target) & (results["split"] == split) & (results["part"] != "pixels")]
        expected = rows["score" if concept == "transfer" else concept]
        np.testing.assert_allclose(drawn(panel, concept)[:, 1], expected)


def test_bands_are_the_intervals_and_levels_are_chance_and_pixels() -> None:
    results = probe_table()
    panel = draw_score_by_layer(results)[0]
    for concept, split in (("score", "cv"), ("transfer", "unseen")):
        rows = results[(results["target"] == "kind") & (results["split"] == split) & (results["part"] != "pixels")]
        bands = [c for c in panel.collections if to_hex(c.get_facecolor()[0]).upper() == COLOURS[concept]]
        heights = np.concatenate([band.get_paths()[0].vertices[:, 1] for band in bands])
        assert len(bands) == 3  # one for each part
        assert set(np.round(heights, 6)) == set(np.round(np.r_[rows["lower"], rows["upper"]], 6))
    levels = {line.get_label(): line.get_ydata()[0] for line in panel.lines}
    assert levels["chance (constant answer)"] == 0.25
    pixels = results[(results["part"] == "pixels") & (results["split"] == "cv")]
    assert levels["raw pixels"] == pytest.approx(pixels["score"].iloc[0])


def test_curves_are_drawn_into_axes_of_the_caller_which_must_be_one_for_each_target() -> None:
    results = probe_table()
    figure, (left, right) = plt.subplots(1, 2)
    assert draw_score_by_layer(results[results["target"] == "kind"], axes=right) == [right]
    assert right.lines and not left.lines
    assert right.get_legend() is not None and not figure.legends
    expected = drawn(draw_score_by_layer(results)[0], "score")[:, 1]
    np.testing.assert_allclose(drawn(right, "score")[:, 1], expected)
    draw_score_by_layer(results[results["target"] == "kind"], axes=left, legend=False)
    assert left.get_legend() is None
    with pytest.raises(ValueError, match="axes must contain 2 Axes, one for each of kind, count, got 1"):
        draw_score_by_layer(results, axes=left)


@pytest.mark.parametrize(("width", "columns"), [("one", 1), ("two", 2)])
def test_every_target_has_a_panel_and_every_curve_one_legend_entry_outside_them(width: str, columns: int) -> None:
    panels = draw_score_by_layer(probe_table(), width=width)  # type: ignore[arg-type]
    figure = figure_of(panels)
    assert figure.get_figwidth() == WIDTHS[width]
    assert [panel.get_title(loc="left").split()[0] for panel in panels] == ["kind", "count"]
    figure.canvas.draw()
    assert len({round(panel.get_position().x0, 2) for panel in panels}) == columns
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "score (95 % interval)", "score on 'unseen' split", "control task", "randomly initialised model",
        "chance (constant answer)", "raw pixels",
    ]  # fmt: skip
    assert not any(legend.get_window_extent().overlaps(panel.get_window_extent()) for panel in panels)
    inside = figure.bbox.padded(1)
    assert all(inside.containsx(x) for text in legend.get_texts() for x in text.get_window_extent().intervalx)


@pytest.mark.parametrize(("n_vision", "n_layers"), [(2, 3), (12, 30), (24, 32), (24, 40)])
def test_no_two_labels_of_the_axis_overlap(n_vision: int, n_layers: int) -> None:
    panels = draw_score_by_layer(probe_table(n_vision, n_layers))
    figure_of(panels).canvas.draw()
    for panel in panels:
        boxes = [t.get_window_extent() for t in panel.get_xticklabels() if t.get_text().lstrip("-").isdigit()]
        assert len(boxes) >= 4
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
        names = [text.get_window_extent() for text in panel.texts]
        assert len(names) == 3
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(names))


def test_parts_stand_in_the_order_of_the_forward_pass_without_overlap_and_short_ones_are_stretched() -> None:
    results = probe_table(n_layers=40)
    spans = place_parts(results[results["part"] != "pixels"])
    assert [span.part for span in spans] == ["vision_tower", "projector", "language_model"]
    assert all(a.right < b.left for a, b in itertools.pairwise(spans))
    assert spans[2].scale == 1 < spans[0].scale
    assert spans[0].right - spans[0].left == pytest.approx((spans[2].right - spans[2].left) / 4)


def test_the_activation_with_most_layers_is_drawn() -> None:
    results = probe_table()
    assert main_name(results) == "resid_post"
    fewer = results.assign(name=results["name"].where(results["layer"].isna() | (results["layer"] < 2), "mlp_out"))
    assert main_name(fewer) == "mlp_out"


def test_each_activation_of_the_blocks_can_have_a_figure_of_its_own() -> None:
    results = probe_table()
    blocks = results[results["layer"].notna()]
    both = pd.concat([results, blocks[blocks["layer"] < 2].assign(name="z", score=0.123)])
    assert names_in_blocks(results) == ["resid_post"]
    assert names_in_blocks(both) == ["resid_post", "z"]
    shown = drawn(draw_score_by_layer(both, name="z")[0], "score")[:, 1]
    assert sum(shown == 0.123) == 5  # two blocks of the tower, two of the language model and its input


def test_low_scores_and_their_intervals_stay_in_the_frame_and_hopeless_ones_are_announced() -> None:
    results = probe_table()
    low = results.assign(score=results["score"] - 2, lower=results["lower"] - 2, chance=-0.1)
    for scores, bottom in ((results.assign(lower=-0.4), -0.4), (low, -1.0)):
        panel = draw_score_by_layer(scores)[0]
        assert panel.get_ylim()[0] <= bottom
        assert any("below -1" in text.get_text() for text in panel.texts) == (scores is low)


def test_table_without_sites_is_refused() -> None:
    results = probe_table()
    with pytest.raises(ValueError, match="must contain at least one site, got none"):
        draw_score_by_layer(results[results["part"] == "pixels"])
