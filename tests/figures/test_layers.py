import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures.layers import draw_score_by_layer, main_name, names_in_blocks, place_parts
from figures.style import COLOURS, save_figure


def table(n_vision: int = 6, n_layers: int = 12, targets: tuple[str, ...] = ("kind", "count")) -> pd.DataFrame:
    sites: list[tuple[str, int | None, str, float]] = [
        *(("vision_tower", i, "resid_post", (i + 1) / n_vision) for i in range(n_vision)),
        *(("projector", None, stage, i / 3) for i, stage in enumerate(("in", "linear_1", "act", "out"))),
        ("language_model", 0, "resid_pre", 0.0),
        *(("language_model", i, "resid_post", (i + 1) / n_layers) for i in range(n_layers)),
        ("pixels", None, "pixels", 0.0),
    ]
    rows = []
    for target in targets:
        for number, (part, layer, name, depth) in enumerate(sites):
            for split in ("cv", "unseen"):
                score = 0.3 + 0.02 * number - 0.1 * (split == "unseen")
                rows.append(
                    {
                        "model": "smol", "part": part, "site": f"{part}{layer}{name}", "layer": layer, "name": name,
                        "depth": depth, "tokens": "image", "pool": "mean", "target": target, "probe": "logistic",
                        "metric": "balanced_accuracy", "split": split, "score": score, "lower": score - 0.05,
                        "upper": score + 0.05, "control": 0.28 if split == "cv" else np.nan, "chance": 0.25,
                        "random_init": 0.27 if split == "cv" and part != "pixels" else np.nan, "n": 100,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def close(figure: Figure) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)


def test_curve_passes_through_the_scores_of_the_table() -> None:
    results = table()
    figure = draw_score_by_layer(results)
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[0].lines if line.get_color() == COLOURS["score"]])
    expected = results.query("target == 'kind' and split == 'cv' and part != 'pixels'")["score"]
    np.testing.assert_allclose(np.sort(drawn), np.sort(expected))
    close(figure)


def test_every_target_has_a_panel_and_every_curve_one_legend_entry_outside_the_panels() -> None:
    figure = draw_score_by_layer(table())
    assert [panel.get_title(loc="left").split()[0] for panel in figure.axes] == ["kind", "count"]
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "score (95 % interval)", "score on 'unseen' split", "control task", "randomly initialised model",
        "chance (constant answer)", "raw pixels",
    ]  # fmt: skip
    assert not any(legend.get_window_extent().overlaps(panel.get_window_extent()) for panel in figure.axes)
    close(figure)


@pytest.mark.parametrize(("n_vision", "n_layers"), [(2, 3), (12, 30), (24, 32), (24, 40)])
def test_no_two_labels_of_the_axis_overlap(n_vision: int, n_layers: int) -> None:
    figure = draw_score_by_layer(table(n_vision, n_layers))
    figure.canvas.draw()
    for panel in figure.axes[:2]:
        boxes = [t.get_window_extent() for t in panel.get_xticklabels() if t.get_text().lstrip("-").isdigit()]
        assert len(boxes) >= 4
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    close(figure)


def test_parts_stand_in_the_order_of_the_forward_pass_without_overlap() -> None:
    results = table()
    spans = place_parts(results[results["part"] != "pixels"])
    assert [span.part for span in spans] == ["vision_tower", "projector", "language_model"]
    assert all(a.right < b.left for a, b in itertools.pairwise(spans))


def test_the_activation_with_most_layers_is_drawn() -> None:
    results = table()
    assert main_name(results) == "resid_post"
    fewer = results.assign(name=results["name"].where(results["layer"].isna() | (results["layer"] < 2), "mlp_out"))
    assert main_name(fewer) == "mlp_out"


def test_each_activation_of_the_blocks_gets_a_figure_of_its_own() -> None:
    results = table()
    blocks = results[results["layer"].notna()]
    both = pd.concat([results, blocks[blocks["layer"] < 2].assign(name="z")])
    assert names_in_blocks(results) == ["resid_post"]
    assert names_in_blocks(both) == ["resid_post", "z"]


def test_low_scores_and_their_intervals_stay_in_the_frame_and_hopeless_ones_are_announced() -> None:
    results = table()
    low = results.assign(score=results["score"] - 2, lower=results["lower"] - 2, chance=-0.1)
    for scores, bottom in ((results.assign(lower=-0.4), -0.4), (low, -1.0)):
        figure = draw_score_by_layer(scores)
        panel = figure.axes[0]
        assert panel.get_ylim()[0] <= bottom
        assert any("below -1" in text.get_text() for text in panel.texts) == (scores is low)
        close(figure)


def test_saved_files_are_the_same_every_time(tmp_path: Path) -> None:
    saved = []
    for name in ("a", "b"):
        figure = draw_score_by_layer(table(), title="the same")
        paths = save_figure(figure, tmp_path / name / "figure")
        saved.append((paths.png.read_bytes(), paths.svg.read_bytes()))
        close(figure)
    assert saved[0] == saved[1]


def test_table_without_sites_is_refused() -> None:
    results = table()
    with pytest.raises(ValueError, match="must hold at least one site, got none"):
        draw_score_by_layer(results[results["part"] == "pixels"])
