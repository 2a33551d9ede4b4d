import matplotlib.pyplot as plt
import pandas as pd
import pytest

from figures.tuning import (
    draw_accuracy,
    draw_cost,
    draw_cost_ratios,
    draw_plans,
    draw_retention,
    plan_colour,
)

PLANS = {"start": "none", "full": "0-7", "middle band": "2-4", "last": "5-7", "LoRA on the band": "2-4"}
FAMILIES = {"seen": ("what", "where", "all"), "text": ("what", "all"), "passage": ("text",)}


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for index, (plan, layers) in enumerate(PLANS.items()):
        for condition, families in (
            ("seen", ("what", "where", "all")),
            ("text", ("what", "all")),
            ("passage", ("text",)),
        ):
            rows += [
                {
                    "plan": plan, "layers": layers, "train": "projector",
                    "method": "lora" if "LoRA" in plan else "full",
                    "flops_ratio": None if plan == "start" else 0.5 + index / 10,
                    "step_time_ratio": None if plan == "start" else 0.6 + index / 10,
                    "condition": condition, "family": family, "metric": "accuracy" if condition != "passage" else "p",
                    "score": 0.2 * index, "score_lower": 0.2 * index - 0.05, "score_upper": 0.2 * index + 0.05,
                    "retention": 0.25 * index, "lower": 0.25 * index - 0.1, "upper": 0.25 * index + 0.1,
                    "n": 50, "seeds": 3,
                }
                for family in families
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_accuracy_has_a_panel_for_each_condition_and_the_values_of_the_table(table: pd.DataFrame) -> None:
    figure = draw_accuracy(table)
    assert [axes.get_title("left").split("  ")[0] for axes in figure.axes] == ["seen drawings", "text alone"]
    panel = figure.axes[0]
    assert len(panel.containers) == len(PLANS)
    heights = [list(container.lines[0].get_ydata()) for container in panel.containers]  # type: ignore[attr-defined]
    assert heights[2] == pytest.approx([0.4, 0.4, 0.4])
    plt.close(figure)
    with pytest.raises(ValueError, match="table must hold accuracies"):
        draw_accuracy(table[table["metric"] != "accuracy"])


def test_retention_draws_every_plan_with_its_interval(table: pd.DataFrame) -> None:
    figure = draw_retention(table)
    assert len(figure.axes) == 3
    for panel in figure.axes:
        assert len(panel.containers) == len(PLANS)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == list(PLANS)[::-1]
    plt.close(figure)


def test_cost_leaves_out_what_was_not_timed(table: pd.DataFrame) -> None:
    figure = draw_cost(table)
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == set(PLANS) - {"start"}
    plt.close(figure)


def test_the_plan_diagram_fills_exactly_the_trained_blocks(table: pd.DataFrame) -> None:
    figure = draw_plans(table)
    panel = figure.axes[0]
    rows = list(PLANS)[::-1]
    wide = 3 + 0.6

    def trained(plan: str) -> list[int]:
        place = rows.index(plan) - 0.36
        own = [p for p in panel.patches if p.get_y() == pytest.approx(place) and wide <= p.get_x() < wide + 8]  # type: ignore[attr-defined]
        coloured = [p for p in own if p.get_facecolor()[3] > 0 or p.get_hatch()]
        return sorted(round(p.get_x() - wide) for p in coloured)  # type: ignore[attr-defined]

    assert trained("full") == list(range(8))
    assert trained("middle band") == trained("LoRA on the band") == [2, 3, 4]
    assert trained("start") == []
    plt.close(figure)


def test_cost_ratios_draw_both_modes() -> None:
    rows = [
        {"plan": plan, "checkpointing": mode, "closed_form_ratio": 0.7, "flops_ratio": 0.71, "step_time_ratio": 0.72,
         "time_low": 0.7, "time_high": 0.75}
        for mode in (False, True) for plan in ("full", "6-16")
    ]  # fmt: skip
    figure = draw_cost_ratios(pd.DataFrame(rows))
    assert [axes.get_title("left") for axes in figure.axes] == ["without checkpointing", "with checkpointing"]
    assert len(figure.axes[0].containers) == 3
    plt.close(figure)


def test_a_plan_has_one_colour_everywhere() -> None:
    assert len({plan_colour(plan) for plan in ("full", "middle band", "start", "projector only", "last")}) == 5
    assert plan_colour("LoRA everywhere") == plan_colour("LoRA on the band")
