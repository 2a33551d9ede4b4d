"""Layer ranges: one notation, read and written, with one error for each mistake."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.layer_ranges import LayerRange, format_layers, parse_layers
from tasks.errors import UserError


@given(st.sets(st.integers(0, 40)))
def test_what_is_written_is_read_back(layers: set[int]) -> None:
    text = format_layers(layers)
    assert (parse_layers(text, 41) if text else ()) == tuple(sorted(layers))


def test_text_one_index_and_several_name_layers() -> None:
    assert parse_layers(" 7, 0 - 3", 8) == (0, 1, 2, 3, 7)
    assert parse_layers(5, 8) == (5,)
    assert parse_layers([5, 1], 8) == (1, 5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("3-", r"layers must be like 0-31 or 3,5,9, got '3-'"),
        ("", r"layers must be like 0-31 or 3,5,9, got ''"),
        ("2-1", r"layers must ascend within a range, got '2-1'. Write 1-2."),
        ("1-99999999999", r"layer must be in \[0, 8\) for the tower of X, got 99999999999. Layers count from 0."),
        (-1, r"layer must be in \[0, 8\) for the tower of X, got -1"),
        ("0-3,2", r"layers must be named once each, got '0-3,2'"),
    ],
)
def test_a_wrong_range_is_one_sentence(layers: LayerRange, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_layers(layers, 8, where="the tower of X")


def test_heads_have_the_same_notation() -> None:
    with pytest.raises(UserError, match=r"head must be in \[0, 4\), got 4. Heads count from 0."):
        parse_layers("0-4", 4, what="head")
