"""Figures of tuning plans: diagram, accuracy, retention, cost."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from figures.plans.cost import draw_cost_ratios, draw_cost_retention, side_by_side
from figures.plans.plan_diagram import AFTER, BEFORE, GAP, STEPS, draw_plan_diagram
from figures.plans.scores import draw_accuracy, draw_retention
from figures.read_run import example_table
from figures.style import PLAN_MARKERS, WIDTHS, figure_of, plan_colour, plan_marker
from tests.figures.tables import PLANS, compare_table


def marks(panel: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By plan: the points, and the ends of their bars, one row a point."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for container in panel.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        ends = np.array([segment.ravel() for segment in bars.get_segments() if len(segment)])
        found.setdefault(str(container.get_label()), []).append((np.asarray(line.get_xydata(), dtype=float), ends))
    return {
        plan: (np.concatenate([p for p, _ in own]), np.concatenate([e for _, e in own])) for plan, own in found.items()
    }


def test_accuracy_has_a_panel_for_each_condition_and_the_values_of_the_table() -> None:
    table = compare_table()
    panels = draw_accuracy(table)
    assert [panel.get_title("left").split("  ")[0] for panel in panels] == ["seen drawings", "caption in words"]
    for panel, condition in zip(panels, ("seen", "text"), strict=True):
        shown = marks(panel)
        assert list(shown) == list(PLANS)
        for plan, (points, ends) in shown.items():
            rows = table[(table["plan"] == plan) & (table["condition"] == condition)]
            there = ~np.isnan(points[:, 1])
            np.testing.assert_allclose(points[there, 1], rows["score"])
            np.testing.assert_allclose(
                ends[~np.isnan(ends).any(axis=1)][:, [1, 3]], rows[["score_lower", "score_upper"]]
            )
    assert not panels[0].collections or all("guess" not in str(c.get_label()) for c in panels[0].collections)
    guessed = draw_accuracy(table.assign(chance=0.25))
    (lines,) = (c for c in guessed[0].collections if c.get_label() == "a guess")
    ends = np.array([path.vertices for path in lines.get_paths()])
    assert len(ends) == table.loc[table["metric"] == "accuracy", "family"].nunique()
    assert (ends[..., 1] == 0.25).all()
    with pytest.raises(ValueError, match="table must contain accuracies"):
        draw_accuracy(table[table["metric"] != "accuracy"])


def test_retention_draws_every_plan_with_its_interval() -> None:
    table = compare_table()
    panels = draw_retention(table)
    assert [text.get_text() for text in panels[0].get_yticklabels()] == list(PLANS)[::-1]
    for panel, condition in zip(panels, ("seen", "text", "passage"), strict=True):
        own = table[(table["condition"] == condition) & table["family"].isin(["all", "text"])].set_index("plan")
        for plan, (points, ends) in marks(panel).items():
            np.testing.assert_allclose(points, [[own.loc[plan, "retention"], list(PLANS)[::-1].index(plan)]])
            np.testing.assert_allclose(ends[:, [0, 2]], [[own.loc[plan, "lower"], own.loc[plan, "upper"]]])
        assert len(panel.containers) == len(PLANS)


def test_a_plan_far_below_all_others_is_a_number_at_the_edge() -> None:
    table = compare_table()
    others = table["plan"] != "start"
    table.loc[others, ["retention", "lower", "upper"]] = [0.9, 0.8, 1.0]
    panel = draw_retention(table)[0]
    assert set(marks(panel)) == set(PLANS) - {"start"}
    assert [text.get_text() for text in panel.texts] == ["\N{LEFTWARDS ARROW} 0.00"]
    assert panel.get_xlim()[0] > 0.7
    table.loc[table["plan"] == "full", "lower"] = 0.6  # then all are drawn to scale
    panel = draw_retention(table)[0]
    assert set(marks(panel)) == set(PLANS) and not panel.texts


def test_cost_against_retention_holds_both_columns_and_leaves_out_what_was_not_timed() -> None:
    table = compare_table()
    panels = draw_cost_retention(table)
    rows = table[(table["condition"] == "seen") & (table["family"] == "all")].set_index("plan")
    for panel, cost in zip(panels, ("flops_ratio", "step_time_ratio"), strict=True):
        shown = marks(panel)
        assert set(shown) == set(PLANS) - {"start"}
        drawn = rows[rows[cost].notna()]
        places = dict(zip(drawn.index, side_by_side(drawn[cost].to_numpy(dtype=float)), strict=True))
        for plan, (points, ends) in shown.items():
            np.testing.assert_allclose(points, [[places[plan], rows.loc[plan, "retention"]]])
            np.testing.assert_allclose(ends[:, [1, 3]], [[rows.loc[plan, "lower"], rows.loc[plan, "upper"]]])
    figure = figure_of(panels)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [plan for plan in PLANS if plan != "start"]
    assert not any(legend.get_window_extent().overlaps(panel.get_window_extent()) for panel in panels)
    untimed = table.assign(flops_ratio=np.nan, step_time_ratio=np.nan)
    with pytest.raises(ValueError, match="must contain a cost and a retention under condition 'seen', got none"):
        draw_cost_retention(untimed)


def test_marks_of_equal_cost_do_not_cover_each_other_and_stay_near_their_cost() -> None:
    table = example_table("cost_retention_smol")
    rows = table[(table["condition"] == "seen") & (table["family"] == "all")].set_index("plan")
    for cost, panel in zip(("flops_ratio", "step_time_ratio"), draw_cost_retention(table), strict=True):
        figure_of(panel).canvas.draw()
        shown = {plan: points[0] for plan, (points, _) in marks(panel).items()}
        size = 4.0 * figure_of(panel).dpi / 72  # a mark's width in pixels
        for one, other in itertools.combinations(map(panel.transData.transform, shown.values()), 2):
            assert np.abs(one - other).max() >= 0.95 * size
        span = rows[cost].max() - rows[cost].min()
        assert all(abs(point[0] - rows.loc[plan, cost]) < 0.06 * span for plan, point in shown.items())
    apart = np.array([0.0, 0.3, 0.6, 1.0])
    assert (side_by_side(apart) == apart).all()  # what is apart is not moved


def test_one_cost_goes_into_one_axes_of_the_caller() -> None:
    _, ax = plt.subplots()
    assert draw_cost_retention(compare_table(), costs=("flops_ratio",), condition="text", axes=ax) == [ax]
    assert ax.get_ylabel() == "retention (caption in words)" and ax.get_legend() is not None


@pytest.mark.parametrize("width", ["one", "two"])
def test_the_plan_diagram_fills_exactly_the_trained_blocks_and_parts(width: str) -> None:
    panel = draw_plan_diagram(compare_table(), width=width)  # type: ignore[arg-type]
    assert figure_of(panel).get_figwidth() == WIDTHS[width]
    rows = list(PLANS)[::-1]
    left = len(BEFORE) * STEPS[width] + GAP

    def trained(plan: str) -> tuple[list[str], list[int], set[str]]:
        place = rows.index(plan) - 0.36
        own = [p for p in panel.patches if p.get_y() == pytest.approx(place)]  # type: ignore[attr-defined]
        assert len(own) == len(BEFORE) + 8 + len(AFTER)
        on = [p for p in own if to_hex(p.get_edgecolor()).upper() == plan_colour(plan)]
        assert all(p.get_hatch() or p.get_facecolor()[3] == 1 for p in on)
        blocks = [p for p in on if left <= p.get_x() < left + 8]  # type: ignore[attr-defined]
        parts = [BEFORE[round(p.get_x() / STEPS[width])] for p in on if p.get_x() < left - GAP]  # type: ignore[attr-defined]
        return parts, [round(p.get_x() - left) for p in blocks], {p.get_hatch() for p in blocks}  # type: ignore[attr-defined, misc]

    assert trained("full") == (["projector"], list(range(8)), {None})
    assert trained("middle band") == (["projector"], [2, 3, 4], {None})
    assert trained("LoRA on the band") == (["projector"], [2, 3, 4], {"/////"})
    assert trained("projector only") == (["projector"], [], set())
    assert trained("start") == ([], [], set())
    (legend,) = figure_of(panel).legends
    assert [text.get_text() for text in legend.get_texts()][-1] == "frozen"


def test_a_plan_of_a_few_layers_is_drawn_on_a_model_of_the_depth_that_is_given() -> None:
    table = pd.DataFrame([{"plan": "3,5-6", "layers": "3,5-6", "train": np.nan, "method": "lisa"}])
    _, ax = plt.subplots()
    assert draw_plan_diagram(table, n_layers=12, ax=ax) is ax
    assert len(ax.patches) == len(BEFORE) + 12 + len(AFTER)
    assert sum(patch.get_hatch() == "....." for patch in ax.patches) == 3
    assert ax.get_legend() is not None
    with pytest.raises(ValueError, match="at least one plan with layers"):
        draw_plan_diagram(table.assign(layers=np.nan))


def test_cost_ratios_draw_the_three_columns_in_both_modes() -> None:
    record = pd.DataFrame(
        [
            {"plan": plan, "checkpointing": mode, "closed_form_ratio": 0.7 + i / 10, "flops_ratio": 0.71 + i / 10,
             "step_time_ratio": 0.72 + i / 10, "time_low": 0.7 + i / 10, "time_high": 0.8 + i / 10}
            for mode in (False, True) for i, plan in enumerate(("full", "6-16"))
        ]
    )  # fmt: skip
    panels = draw_cost_ratios(record)
    assert [panel.get_title("left") for panel in panels] == ["without checkpointing", "with checkpointing"]
    for panel in panels:
        closed_form, counted, time = panel.containers
        for container, column in (
            (closed_form, "closed_form_ratio"),
            (counted, "flops_ratio"),
            (time, "step_time_ratio"),
        ):
            shown = container.lines[0].get_xdata()  # type: ignore[attr-defined]
            np.testing.assert_allclose(shown, record[column].to_numpy()[:2][::-1])
        ends = np.array([segment[:, 0] for segment in time.lines[2][0].get_segments()])  # type: ignore[attr-defined]
        np.testing.assert_allclose(ends, record[["time_low", "time_high"]].to_numpy()[:2][::-1])


def test_a_plan_has_one_colour_everywhere_and_plans_of_one_colour_differ_by_marker() -> None:
    assert len({plan_colour(plan) for plan in ("full", "middle band", "start", "projector only", "last")}) == 5
    assert plan_colour("LoRA everywhere") == plan_colour("LoRA on the band")
    looks = {(plan_colour(plan), plan_marker(plan)) for plan in PLAN_MARKERS}
    assert len(looks) == len(PLAN_MARKERS) == len(set(PLAN_MARKERS.values()))
