"""The curves of evaluations while training."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from figures.plans.learning_curve import draw_learning_curve
from figures.style import SERIES, figure_of
from tests.figures.tables import evaluations_table as evaluations


def test_a_run_gets_a_panel_for_each_family_and_one_for_all_log_probabilities() -> None:
    table = evaluations()
    panels = draw_learning_curve(table.sample(frac=1, random_state=0))  # rows in any order
    shown = {(p.get_title("left"), p.lines[0].get_ydata()[0] < 0): p for p in panels}  # type: ignore[index]
    names = [f"seen drawings: {family} (n = 40)" for family in ("all", "colour", "count")]
    assert {title for title, _ in shown} == set(names)
    assert sorted(negative for _, negative in shown) == [False, False, False, True]
    for (title, negative), panel in shown.items():
        metric = "log_prob_per_token" if negative else "accuracy"
        own = table[(table["family"] == title.split(": ")[1].split(" ")[0]) & (table["metric"] == metric)]
        assert [line.get_ydata()[0] for line in panel.lines[1:]] == ([] if negative else [0.25])  # type: ignore[index]
        np.testing.assert_allclose(panel.lines[0].get_xydata(), own[["step", "score"]])
        (band,) = panel.collections
        ends = np.concatenate([path.vertices for path in band.get_paths()])
        for step, lower, upper in own[["step", "lower", "upper"]].to_numpy():
            at = ends[ends[:, 0] == step, 1]
            assert (at.min(), at.max()) == pytest.approx((lower, upper))
    (legend,) = figure_of(panels).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a guess"]


def test_several_runs_get_a_curve_each_and_a_legend() -> None:
    table = pd.concat([evaluations().assign(run=run) for run in ("linear", "two layers")], ignore_index=True)
    table = table.drop(columns="chance")
    panels = draw_learning_curve(table, metrics=["accuracy"])
    assert len(panels) == 3
    for panel in panels:
        assert [line.get_label() for line in panel.lines] == ["linear", "two layers"]
        assert [line.get_color() for line in panel.lines] == list(SERIES[:2])
    (legend,) = figure_of(panels).legends
    assert [text.get_text() for text in legend.get_texts()] == ["linear", "two layers"]
    many = pd.concat([evaluations().assign(run=run) for run in range(7)], ignore_index=True)
    with pytest.raises(ValueError, match="table must contain at most 6 runs, got 7"):
        draw_learning_curve(many)


def test_answers_without_families_have_one_panel_a_metric_in_axes_of_the_caller() -> None:
    table = evaluations(families=("", "all"), name="captions")
    _, axes = plt.subplots(1, 2)
    panels = draw_learning_curve(table, axes=axes, title="Captions")
    assert list(axes) == panels
    assert [panel.get_title("left") for panel in panels] == ["captions: all (n = 40)"] * 2
    with pytest.raises(ValueError, match="axes must contain 2 Axes"):
        draw_learning_curve(table, axes=axes[0])
    with pytest.raises(ValueError, match="table must contain accuracy, got none"):
        draw_learning_curve(table[table["metric"] != "accuracy"], metrics=["accuracy"])
