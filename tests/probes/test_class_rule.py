"""The class that a probe decides for."""

import numpy as np
import pytest

from probes.evaluation.class_rule import class_counts, decide_class

RNG = np.random.default_rng(0)
PROBABILITY = RNG.dirichlet(np.ones(4), size=200).T
COUNTS = np.array([120, 40, 9, 31])


def test_the_class_is_the_one_with_the_largest_ratio_of_probability_to_frequency() -> None:
    by_hand = [max(range(4), key=lambda k: column[k] / (COUNTS[k] / 200)) for column in PROBABILITY.T]
    assert decide_class(PROBABILITY, COUNTS).tolist() == by_hand
    assert decide_class(PROBABILITY, COUNTS).tolist() != PROBABILITY.argmax(0).tolist()  # the frequencies matter


@pytest.mark.parametrize("shift", [0.0, 7.5])
def test_logits_and_probabilities_give_the_same_class(shift: float) -> None:
    logits = np.log(PROBABILITY) + shift
    assert (decide_class(logits, COUNTS, are_logits=True) == decide_class(PROBABILITY, COUNTS)).all()


def test_equal_frequencies_leave_the_most_probable_class_and_a_class_without_examples_is_not_divided_by_0() -> None:
    assert (decide_class(PROBABILITY, np.full(4, 50)) == PROBABILITY.argmax(0)).all()
    codes = np.array([0, 2, 2])
    assert class_counts(codes, 4).tolist() == [1, 0, 2, 0]
    outputs = np.array([[0.4], [0.0], [0.6], [0.0]])  # 0.4 / 1 is more than 0.6 / 2
    assert decide_class(outputs, class_counts(codes, 4)).tolist() == [0]
