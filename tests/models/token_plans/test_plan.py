"""Token plans are read from text, and their closed form gives the published costs."""

import pytest

from models.token_plans.cost import CONVENTIONS, LLAVA_7B, Sizes, cache_bytes, decode, prefill
from models.token_plans.plan import parse_token_plan, parse_token_plans
from tasks.errors import UserError


def ratio(text: str, n_text: int, convention: str = CONVENTIONS[-1]) -> float:
    """Prefill of a plan for LLaVA-1.5-7B relative to ``all``, in percent."""
    costs = [prefill(LLAVA_7B, parse_token_plan(t, 32), 576, n_text, convention=convention) for t in (text, "all")]
    return 100 * costs[0] / costs[1]


def test_published_costs() -> None:
    whole = prefill(LLAVA_7B, parse_token_plan("all", 32), 576, 0, convention="image tokens")
    assert whole == pytest.approx(3.817e12, rel=2e-4)  # PyramidDrop, table 1: 3.82 T
    pyramid = parse_token_plan("keep:0.5@8:uniform+keep:0.25@16:uniform+keep:0.125@24:uniform", 32)
    assert prefill(LLAVA_7B, pyramid, 576, 0, convention="image tokens") == pytest.approx(1.777e12, rel=5e-4)  # 1.78 T
    assert ratio("freeze:13-31", 60) == pytest.approx(54.9, abs=0.05)  # ShortV: 55 %
    assert ratio("leave@16", 60) == pytest.approx(54.6, abs=0.05)  # VTW: 55 %
    assert ratio("keep:0.5@2:uniform", 60) == pytest.approx(57.0, abs=0.05)  # FastV: 58 %
    assert ratio("keep:0.5@2:uniform", 80) == pytest.approx(58.2, abs=0.05)
    assert ratio("6-16:freeze", 60) == pytest.approx(50, abs=0.5)
    assert ratio("6-16:hide", 60) == pytest.approx(40, abs=0.5)


def test_what_stays_in_the_cache_and_what_a_new_token_costs() -> None:
    plans = {text: parse_token_plan(text, 4) for text in ("all", "leave@2", "freeze:2-3", "keep:0.5@1:uniform")}
    sizes = Sizes(4, 8, 8, 4, 16)
    held = {text: cache_bytes(sizes, plan, 10, 6, itemsize=2) // 16 for text, plan in plans.items()}
    assert held == {"all": 64, "leave@2": 44, "freeze:2-3": 64, "keep:0.5@1:uniform": 49}
    dense = 4 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)
    assert decode(sizes, plans["all"], 10, 6) == dense + 2 * 8 * 4 * 17
    assert decode(sizes, plans["leave@2"], 10, 6, n_generated=3) == dense + 2 * 8 * (2 * 20 + 2 * 10)


TEXTS = ("enter@2", "leave@4", "2-3", "hide:0-1+4-5", "freeze:1")


def test_forms_and_what_they_mean() -> None:
    read = {
        text: parse_token_plan(text, 6).states for text in ("enter@2", "leave@4", "2-3", "hide:0-1+4-5", "freeze:1")
    }
    h, c, f = "hide", "compute", "freeze"
    assert read["enter@2"] == (h, h, c, c, c, c)
    assert read["leave@4"] == (c, c, c, c, h, h)
    assert read["2-3"] == read["hide:0-1+4-5"] == (h, h, c, c, h, h)
    assert read["freeze:1"] == (c, f, c, c, c, c)
    assert [plan.text for plan in parse_token_plans("all, leave@2,2-3 ,2-3:freeze", 6)] == [
        "all", "leave@2", "2-3:hide", "2-3:freeze",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hide:0-5", "must leave a layer in which image tokens are computed"),
        ("leave@0", "must leave a layer"),
        ("freeze:0-2+hide:3-5", "must leave a layer"),
        ("leave@6", "layer must be in [0, 6), got 6"),
        ("hide:3-9", "layer must be in [0, 6), got 9"),
        ("5-2", "must ascend within a range"),
        ("keep:0@2:uniform", "share must be in (0, 1], got 0"),
        ("keep:1.5@2:uniform", "share must be in (0, 1], got 1.5"),
        ("keep:0.5@2:best", "token plan must be a form like"),
        ("keep:0.5@2", "token plan must be a form like"),
        ("", "token plan must be a form like"),
        ("leave", "token plan must be a form like"),
        ("hide:2+leave@2", "must name each layer once, got layer 2"),
        ("hide:2+freeze:2", "must name each layer once, got layer 2"),
        ("2-3+freeze:1", "must be a band alone"),
        ("leave@2+keep:0.5@3:attention", "stage must begin where image tokens are attended to"),
        ("keep:0.5@3:uniform+keep:0.4@2:uniform", "ascending layers and descending shares"),
        ("keep:0.5@2:uniform+keep:0.5@3:uniform", "ascending layers and descending shares"),
        ("hide:" + "9" * 4000, "token plan must be a form like"),
    ],
)
def test_bad_plans_are_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_token_plan(text, 6)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_plan_named_twice_is_refused() -> None:
    with pytest.raises(UserError, match="named once each, got '2-3:hide' twice"):
        parse_token_plans("2-3,2-3:hide", 6)
