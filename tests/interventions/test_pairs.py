from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interventions.config import PairOptions
from interventions.pairs import load_pairs
from tasks.errors import UserError
from tests.interventions.conftest import PairFile, write_rows


def test_scenes_of_a_pair_ask_the_same_and_hold_the_clean_answer() -> None:
    found = load_pairs(PairOptions(limit=5, attribute="place"), seed=0)
    assert len({pair.id for pair in found.pairs}) == 5
    for pair in found.pairs:
        assert pair.clean.question == pair.corrupt.question
        assert pair.clean.answer == pair.corrupt.answer != pair.foil
        assert pair.clean.pictures[0].open().tobytes() != pair.corrupt.pictures[0].open().tobytes()


@pytest.mark.parametrize(
    "changes", [{"attribute": "kind"}, {"split": "train"}, {"limit": 4}, {"seed": 1}, {"size": 96}, {"length": len}]
)
def test_digest_changes_with_whatever_changes_the_pairs(changes: dict[str, Any]) -> None:
    def digest(**options: Any) -> str:
        outside = {key: options.pop(key) for key in ("seed", "size", "length") if key in options}
        return load_pairs(PairOptions(**{"limit": 5, **options}), **{"seed": 0, **outside}).digest

    assert digest() == digest()
    assert digest(**changes) != digest()


def test_foils_are_as_long_as_answers_where_lengths_are_counted() -> None:
    pairs = load_pairs(PairOptions(limit=12, attribute="colour"), seed=0, length=lambda text: len(text) > 4).pairs
    assert all((len(pair.foil) > 4) == (len(pair.clean.answer) > 4) for pair in pairs)


def test_rows_of_a_file_become_pairs(pair_file: PairFile) -> None:
    found = load_pairs(PairOptions(str(pair_file.table)), seed=0)
    assert [pair.id for pair in found.pairs] == ["p0", "p1", "p2", "p3"]
    assert [(pair.clean.answer, pair.corrupt.answer, pair.foil) for pair in found.pairs][1] == ("taxi", "taxi", "apple")
    assert found.pairs[0].clean.pictures != found.pairs[0].corrupt.pictures
    assert len(load_pairs(PairOptions(str(pair_file.table), limit=2), seed=0).pairs) == 2
    elsewhere = write_rows(pair_file.table.parent.parent / "pairs.jsonl", pair_file.rows)
    moved = load_pairs(PairOptions(str(elsewhere), images=pair_file.folder), seed=0)
    assert moved.digest == found.digest


Change = Callable[[list[dict[str, object]], Path], object]
BROKEN: dict[str, tuple[Change, str]] = {
    "no foil": (lambda rows, folder: rows[1].pop("foil"), "'foil' in line 2"),
    "same foil": (lambda rows, folder: rows[1].update(foil="taxi"), "foil must differ from the answer, got 'taxi'"),
    "same id": (lambda rows, folder: rows[1].update(id="p0"), "id must be unique, got 'p0' again"),
    "outside": (lambda rows, folder: rows[1].update(clean="../x.png"), "inside the image folder"),
    "missing": (lambda rows, folder: (folder / "clean-2.png").unlink(), "clean-2.png"),
    "broken": (lambda rows, folder: (folder / "corrupt-2.png").write_text("no picture"), "corrupt-2.png"),
    "empty": (lambda rows, folder: rows.clear(), "at least one row"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_file_that_cannot_be_used_is_refused_with_the_row_or_picture(pair_file: PairFile, how: str) -> None:
    change, phrase = BROKEN[how]
    change(pair_file.rows, pair_file.folder)
    write_rows(pair_file.table, pair_file.rows)
    with pytest.raises(UserError, match=phrase):
        load_pairs(PairOptions(str(pair_file.table)), seed=0)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (PairOptions(limit=0), "limit must be >= 1, got 0"),
        (PairOptions(attribute="mood"), "pair must be one of kind, colour, place, drawing, got 'mood'"),
        (PairOptions(split="nowhere"), "split must be one of train, test, unseen, got 'nowhere'"),
        (PairOptions(split="unseen", attribute="drawing"), "one unseen drawing"),
        (PairOptions("nothing.jsonl"), "existing file, got 'nothing.jsonl'"),
        (PairOptions("nothing.jsonl", split="test"), "split must not be given for pairs of a file"),
    ],
)
def test_options_that_mean_no_pairs_are_refused(options: PairOptions, phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        load_pairs(options, seed=0)


def test_columns_of_a_file_that_are_not_read_are_counted(pair_file: PairFile) -> None:
    changed = [{**row, "note": "x", "empty": ""} for row in pair_file.rows]
    changed[0]["clean_2"] = "b.png"
    other = write_rows(pair_file.folder / "more.jsonl", changed)
    assert load_pairs(PairOptions(str(pair_file.table)), seed=0).unread == ()
    assert load_pairs(PairOptions(str(other)), seed=0).unread == (("note", 4), ("clean_2", 1))
