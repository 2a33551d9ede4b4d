"""Scores of answers, against the examples and arithmetic of the published evaluations."""

import pytest

from tasks.scoring import accuracy_by_family, exact_match, score_answer


def test_exact_match_ignores_case_articles_and_number_words() -> None:
    assert exact_match("A taxi.", "Taxi") == 1.0
    assert exact_match("2", "two") == 1.0
    assert exact_match("bus", "taxi") == 0.0


def test_a_prediction_of_punctuation_matches_nothing() -> None:
    assert exact_match("?", "!") == 0.0


def test_the_family_decides_the_rule() -> None:
    assert score_answer("The answer is B.", "B", "choice") == 1.0
    assert score_answer("The answer is B.", "B", "what") == 0.0
    assert score_answer("No, I see none.", "no", "exists") == 1.0
    assert score_answer("No, I see none.", "no", "what") == 0.0
    assert score_answer("blue", ["blue"] * 2 + ["navy"] * 8, "colour") == pytest.approx(0.6)


@pytest.mark.parametrize("family", ["what", "choice", "exists"])
def test_an_empty_prediction_is_wrong_in_every_family(family: str) -> None:
    right = {"what": "cat", "choice": "A", "exists": "yes"}[family]
    assert score_answer(right, right, family) == 1.0
    assert score_answer(" ", right, family) == 0.0


def test_an_expected_answer_that_does_not_fit_its_family_is_refused() -> None:
    with pytest.raises(ValueError, match="answer must be an option letter for family 'choice', got 'cat'"):
        score_answer("A", "cat", "choice")
    with pytest.raises(ValueError, match="answer must be yes or no for family 'exists', got 'cat'"):
        score_answer("yes", "cat", "exists")


def test_accuracy_by_family_gives_wilsons_interval() -> None:
    table = accuracy_by_family([1.0] * 8 + [0.0] * 2 + [1.0] * 5, ["what"] * 10 + ["count"] * 5).set_index("family")
    assert list(table.index) == ["what", "count", "all"]
    # The textbook case: 8 of 10 gives 0.490 to 0.943.
    assert table.loc["what", ["score", "lower", "upper"]].tolist() == pytest.approx([0.8, 0.490, 0.943], abs=5e-4)
    assert table.loc["count", "upper"] == 1.0
    assert table.loc["count", "lower"] == pytest.approx(0.5655, abs=5e-4)  # n / (n + z^2)
    assert table["n"].tolist() == [10, 5, 15]
    assert set(table["interval"]) == {"wilson"}


def test_a_higher_level_gives_a_wider_interval() -> None:
    scores, families = [1.0, 0.0] * 10, ["x"] * 20
    narrow, wide = (accuracy_by_family(scores, families, level=level).iloc[0] for level in (0.8, 0.99))
    assert wide["lower"] < narrow["lower"] < narrow["upper"] < wide["upper"]


def test_scores_that_are_none_or_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="scores and families must have the same length"):
        accuracy_by_family([], [])
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        accuracy_by_family([1.5], ["what"])
    with pytest.raises(ValueError, match=r"scores must lie in \[0, 1\]"):
        accuracy_by_family([float("nan")], ["what"])
