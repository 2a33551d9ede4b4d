"""Maps over the patch grid, painted on the picture."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from figures.patch_map import draw_patch_map, draw_probe_map, pair_rows
from figures.style import figure_of
from tests.figures.made_runs import patch_rows
from tests.figures.tables import map_table, patch_table

PICTURE = np.zeros((40, 60, 3), dtype=np.uint8)
PICTURE[:, 30:] = 255


def test_patches_stand_where_they_stand_in_the_picture() -> None:
    patches = [f"patch({r},{c})" for r in range(2) for c in range(3)]
    results = patch_table(tokens=patches, layers=(1, 5))
    panels = draw_patch_map(results, PICTURE)
    assert [panel.get_title() for panel in panels] == ["resid_pre 1", "resid_pre 5"]
    for panel, layer in zip(panels, (1, 5), strict=True):
        below, above = panel.images
        of_layer = results[(results["layer"] == layer) & (results["metric"] == "logit_difference")]
        np.testing.assert_allclose(above.get_array(), of_layer["recovered"].to_numpy().reshape(2, 3))
        assert below.get_extent() == above.get_extent()
        shade = np.asarray(below.get_array())
        assert shade[0, 0] < 0.01 and shade[0, -1] > 0.99
        assert np.asarray(above.get_alpha()).argmax() == of_layer["recovered"].to_numpy().argmax()
        marked = {(int(y), int(x)) for line in panel.lines for x, y in line.get_xydata()}
        significant = of_layer[of_layer["p_adjusted"] < 0.05]["tokens"]
        assert marked == {(int(text[6]), int(text[8])) for text in significant}
    assert marked
    assert len(draw_patch_map(results)[0].images) == 1  # no picture, no background
    with pytest.raises(ValueError, match="--tokens patches"):
        draw_patch_map(patch_table())


def test_probe_maps_paint_the_probabilities_of_one_example_layer_by_layer() -> None:
    maps = map_table()
    panels = draw_probe_map(maps, PICTURE, target="colour", example="b", layers=(1, 3))
    assert [panel.get_title() for panel in panels] == ["resid_post 1", "resid_post 3"]
    for panel, layer in zip(panels, (1, 3), strict=True):
        below, above = panel.images
        rows = maps[(maps["target"] == "colour") & (maps["example"] == "b") & (maps["layer"] == layer)]
        rows = rows[rows["part"] == "language_model"]
        np.testing.assert_allclose(above.get_array(), rows["p_true"].to_numpy().reshape(2, 3))
        assert above.get_clim() == (0, 1)
        assert below.get_extent() == above.get_extent()


def test_without_layers_sites_are_spread_from_the_tower_to_the_last_block() -> None:
    panels = draw_probe_map(map_table(n_layers=30))
    titles = [panel.get_title() for panel in panels]
    assert len(titles) == 6
    assert titles[0] == "vision tower 1" and titles[-1] == "resid_post 29"
    assert [panel.get_title() for panel in draw_probe_map(map_table())][:3] == [
        "vision tower 1", "projector out", "resid_post 0",
    ]  # fmt: skip


def test_box_and_chance_are_drawn_where_they_were_given() -> None:
    panels = draw_probe_map(map_table(), PICTURE, layers=[0], box=(0.0, 0.5, 1 / 3, 1.0), chance=0.2)
    frame = panels[0].patches[-1]
    assert frame.get_bbox().bounds == pytest.approx((-0.5, 0.5, 1.0, 1.0))  # type: ignore[attr-defined]
    (bar,) = [panel for panel in figure_of(panels).axes if panel.get_label() == "<colorbar>"]
    assert {float(line.get_ydata()[0]) for line in bar.lines} == {0.2}
    assert bar.get_ylabel() == "probability of the\nexample's own kind"
    assert not draw_probe_map(map_table(), PICTURE, layers=[0])[0].patches


def test_probe_maps_go_into_axes_of_the_caller() -> None:
    _, axes = plt.subplots(1, 2)
    assert draw_probe_map(map_table(), axes=axes, layers=[0, 1], legend=False) == list(axes)
    assert len(figure_of(axes).axes) == 2


def test_what_was_not_mapped_is_refused_with_what_was() -> None:
    maps = map_table()
    with pytest.raises(ValueError, match="target must be one of kind, colour, got 'place'"):
        draw_probe_map(maps, target="place")
    with pytest.raises(ValueError, match="example must be one of a, b, got 'c'"):
        draw_probe_map(maps, example="c")
    with pytest.raises(ValueError, match=r"layers must be among 0, 1, 2, 3, got \[2, 4\]"):
        draw_probe_map(maps, layers=[2, 4])


def test_heads_have_a_map_each_and_pairs_keep_them_apart() -> None:
    table = patch_rows(["patch(0,0)", "patch(0,1)"], heads=["0", "1"]).query("layer == 2").assign(name="z")
    panels = draw_patch_map(table)
    assert [panel.get_title() for panel in panels] == ["head 0 of z 2", "head 1 of z 2"]
    for panel, head in zip(panels, "01", strict=True):
        wanted = table[(table["head"] == head) & (table["metric"] == "logit_difference")]["recovered"]
        np.testing.assert_allclose(np.asarray(panel.images[-1].get_array(), float).ravel(), wanted)
    values = pd.concat(
        [table.assign(id=pair, value=table["value"] + shift) for pair, shift in (("a", 1.0), ("b", 2.0))]
    ).sample(frac=1, random_state=0)
    own = pair_rows(table, values, "b")
    np.testing.assert_allclose(own["value"], table["value"] + 2.0)
