"""CIDEr-D against pycocoevalcap's values, its tokenizer's words, and the formula by hand."""

import math

import numpy as np
import pytest

from tasks.errors import UserError
from tasks.rules.cider import Cider, caption_words, cider_scores

REFERENCES = [
    ["A man's dog runs on the grass.", "A brown dog is running in a green field."],
    [
        "Two women don't look at the red bus, which is parked.", "A red double-decker bus at the side of a street!",
        "Women beside a bus.",
    ],
    ["A plate of food on a table.", "Rice and beans (with sauce) on a white plate on a table."],
    ["A cat sleeps on a couch."],
]  # fmt: skip
CAPTIONS = [
    "A dog runs on the grass in a green field.", "A red bus is parked at the side of the street.",
    "A plate plate plate on a table.", "Nothing.",
]  # fmt: skip
# PTBTokenizer and Cider of pycocoevalcap 1.2 with Java 17.
THEIRS = [3.924130394570184, 2.038215144385239, 1.7090575220502402, 0.0]


def test_scores_are_those_of_pycocoevalcap() -> None:
    # Sums of products in another order: a few units of the last place.
    np.testing.assert_allclose(cider_scores(CAPTIONS, REFERENCES), THEIRS, rtol=1e-12)


def test_the_formula_by_hand() -> None:
    # Two pictures; every word of the second caption is found in one picture only, so all weights are log 2. Of the
    # reference "c d e" the caption "c d" has 2 of 3 words, 1 of 2 pairs and no triple, and one pair of words less.
    cosines = [2 / math.sqrt(2 * 3), 1 / math.sqrt(1 * 2), 0, 0]
    expected = 10 * math.exp(-1 / (2 * 36)) * sum(cosines) / 4
    assert cider_scores(["x", "c d"], [["a b"], ["c d e"]]).tolist() == [0.0, pytest.approx(expected)]
    # A phrase of every picture has no weight, and one picture alone gives no weights at all.
    assert cider_scores(["a", "a"], [["a"], ["a"]]).tolist() == [0.0, 0.0]
    assert Cider([["a b c d"]]).score("a b c d", 0) == 0.0
    # Repeating a word does not help: its weight is cut at that of the reference.
    once, thrice = (Cider([["a b c d e"], ["f"]]).score(text, 0) for text in ("a b c d e", "a a a b c d e"))
    assert once == 10.0 > thrice


@pytest.mark.parametrize(
    ("caption", "words"),  # as PTBTokenizer with -lowerCase gives them, without the punctuation of its wrapper
    [
        ("A man's t-shirt isn't red.", "a man 's t-shirt is n't red"),
        ('Two dogs (small) run, "fast"!', "two dogs -lrb- small -rrb- run fast"),
        ("I can't, cannot, won't; gonna go...", "i ca n't can not wo n't gon na go"),
        (
            "A U.S. flag - at 5:30 p.m. -- for $5.50 or 50%",
            "a u.s. flag at 5:30 p.m. for $ 5.50 or 50 %",
        ),
        ("St. Mary's street, Mr. Smith & co.", "st. mary 's street mr. smith & co."),
        (
            "a black-and-white photo of 1,000 people's cars/trucks",
            "a black-and-white photo of 1,000 people 's cars/trucks",
        ),
        ("he said: \u2018hello\u2019 \u201cyes\u201d", "he said hello yes"),
        ("it\u2019s the dogs' ball", "it 's the dogs ball"),
        ("two-storey 80's car, 1980's '80s", "two-storey 80 's car 1980 's '80s"),
        ("", ""),
    ],
)  # fmt: skip
def test_words_are_those_of_the_tokenizer(caption: str, words: str) -> None:
    assert caption_words(caption) == words.split()


def test_bad_references_and_counts_are_one_sentence() -> None:
    for references in ([], [["a"], []]):
        with pytest.raises(UserError, match="references must be at least one caption"):
            Cider(references)
    with pytest.raises(UserError, match="captions must be one for each of 2 pictures, got 1"):
        cider_scores(["a"], [["a"], ["b"]])
