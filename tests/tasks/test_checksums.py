"""The ledger of a folder: a file that changed on disk is found, and what is written in turns stays valid."""

from pathlib import Path

import pytest

from tasks.checksums import (
    LEDGER,
    DamagedFileError,
    check_whole,
    damaged_files,
    is_whole,
    is_whole_folder,
    move_recorded,
    read_whole,
    read_whole_json,
    record,
    record_files,
)
from tasks.errors import UserError


def written(path: Path, data: bytes) -> Path:
    record(path, data)
    path.write_bytes(data)
    return path


def test_every_changed_byte_of_a_file_is_found(tmp_path: Path) -> None:
    path = written(tmp_path / "values", bytes(range(64)))
    assert is_whole(path)
    for place in range(64):
        data = bytearray(range(64))
        data[place] ^= 1
        path.write_bytes(bytes(data))
        assert not is_whole(path), place
    with pytest.raises(DamagedFileError, match=r"values must be as it was written, got changed bytes .* Start again\."):
        check_whole(path, advice="Start again.")
    assert damaged_files(tmp_path) == ("values",)


def test_a_cut_empty_missing_or_unknown_file_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "values", b"1 2 3")
    for data in (b"1 2", b"", b"1 2 3 4"):
        path.write_bytes(data)
        assert not is_whole(path)
        with pytest.raises(DamagedFileError):
            read_whole(path, advice="")
    path.unlink()
    assert not is_whole(path) and damaged_files(tmp_path) == ()  # a missing file is not a changed one
    (tmp_path / "other").write_bytes(b"7")
    assert not is_whole(tmp_path / "other")  # the folder has a ledger without it


def test_a_folder_without_a_ledger_is_read_unchecked(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"7")
    assert is_whole(tmp_path / "old") and not is_whole_folder(tmp_path)
    assert read_whole(tmp_path / "old", advice="") == b"7"


def test_a_process_killed_before_the_rename_leaves_the_file_before_valid(tmp_path: Path) -> None:
    path = written(tmp_path / "table", b"first")
    record(path, b"second")  # and the process ends here
    assert is_whole(path)
    path.write_bytes(b"second")
    assert is_whole(path)
    written(path, b"third")
    path.write_bytes(b"first")
    assert not is_whole(path)


def test_a_damaged_ledger_makes_files_damaged_and_never_fails(tmp_path: Path) -> None:
    path = written(tmp_path / "values", b"1 2 3")
    whole = (tmp_path / LEDGER).read_bytes()
    for ledger in (b"\xff\0\n", whole.replace(b"5 ", b"6 "), b"\n", whole[:5]):
        (tmp_path / LEDGER).write_bytes(ledger)
        assert not is_whole(path)
    (tmp_path / LEDGER).write_bytes(b"torn" + b"\n" + whole)
    assert is_whole(path)


def test_files_of_other_writers_are_recorded_and_moved(tmp_path: Path) -> None:
    fresh, folder = tmp_path / ".fresh", tmp_path / "model"
    fresh.mkdir(), folder.mkdir()
    (fresh / "model.safetensors").write_bytes(b"weights")
    (fresh / "config.json").write_bytes(b"{}")
    record_files(fresh)
    assert is_whole_folder(fresh)
    move_recorded(fresh / "model.safetensors", folder / "model.safetensors")
    assert is_whole_folder(folder) and not is_whole_folder(fresh)
    (folder / "model.safetensors").write_bytes(b"Weights")
    assert not is_whole_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", "cost.json must hold a mapping, got list"),
        (b"{", "cost.json must be readable JSON"),
        (b"[" * 100_000, "nested more than 64 levels"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": "\\ud83d"}', "half a surrogate pair"),
        (None, "cost.json must be readable JSON, got .*No such file"),
    ],
)
def test_json_of_a_run_is_a_mapping_or_one_sentence(tmp_path: Path, text: bytes | None, message: str) -> None:
    path = tmp_path / "cost.json"
    if text is not None:
        written(path, text)
    with pytest.raises(UserError, match=message):
        read_whole_json(path, advice="Start again.")
