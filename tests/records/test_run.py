"""The life of a run directory: checked, locked, resumed, replaced, finished."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from records.manifest import RunKind, commit
from records.processes import Processes
from records.run import RESERVE, Run, check_space, free_bytes, writing
from records.shared_jobs import one_at_a_time
from records.tables import read_results
from tasks.checksums import LEDGER, is_whole
from tasks.errors import UserError

KIND = RunKind("probe-sweep", writes=("activations", "checkpoint-*"))
TABLE = pd.DataFrame({"a": [1, 2]})


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def test_a_run_is_made_finished_and_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", KIND, {"seed": 0}, command=["probe-sweep", "--seed", "0"])
    assert not (tmp_path / "run").exists()  # checking writes nothing
    with run.open(Processes(), model={"id": "tiny"}):
        manifest = json.loads((run.folder / "manifest.json").read_text())
        assert (manifest["model"], manifest["finished"]) == ({"id": "tiny"}, None)
        assert not run.is_finished
        run.finish(TABLE)
        assert run.is_finished
    done = json.loads((run.folder / "manifest.json").read_text())
    assert (done["command"], done["started"]) == (["probe-sweep", "--seed", "0"], manifest["started"])
    assert done["finished"] is not None
    pd.testing.assert_frame_equal(read_results(run.folder, KIND), TABLE)
    again = Run(tmp_path / "run", KIND, {"seed": 0})
    with again.open(Processes(), model={"id": "tiny"}):
        assert again.is_finished
    assert json.loads((run.folder / "manifest.json").read_text()) == done


def test_other_settings_or_another_model_are_an_error_unless_overwritten(tmp_path: Path) -> None:
    with Run(tmp_path, KIND, {"seed": 0}).open(Processes(), model={"id": "tiny"}):
        (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(UserError, match=r"settings\.seed was 0, is 1.*--overwrite"):
        Run(tmp_path, KIND, {"seed": 1})
    same = Run(tmp_path, KIND, {"seed": 0})
    with (
        pytest.raises(UserError, match=r"model\.id was 'tiny', is 'large'"),
        same.open(Processes(), model={"id": "large"}),
    ):
        pass
    assert (tmp_path / "checkpoint-10").exists()
    with Run(tmp_path, KIND, {"seed": 1}, overwrite=True).open(Processes()):
        assert not (tmp_path / "checkpoint-10").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"] == {"seed": 1}


def test_a_second_command_in_the_folder_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    first, second = Run(tmp_path, KIND, {"seed": 0}), Run(tmp_path, KIND, {"seed": 0})
    with (
        first.open(Processes()),
        pytest.raises(UserError, match="out must not be in use, .* another process writes"),
        second.open(Processes()),
    ):
        pass
    with second.open(Processes()):  # the lock ends with the block
        pass


def test_only_rank_0_makes_the_folder_and_all_wait(tmp_path: Path) -> None:
    waited: list[int] = []
    with Run(tmp_path / "run", KIND, {}).open(Processes(1, 2, lambda: waited.append(1))):
        assert waited == [1]
        assert not (tmp_path / "run").exists()


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="out must be a writable folder"),
        Run(tmp_path / "file/run", KIND, {}).open(Processes()),
    ):
        pass
    with pytest.raises(UserError, match="room on the disk, got full.*kept"), writing(tmp_path):
        raise OSError(28, "full")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENAMETOOLONG, r"got File name too long at 'x+'\. Choose a shorter path\."),
        (errno.EACCES, r"got Permission denied at 'x+'\. Correct this and start the same command again: finished"),
        (errno.EIO, r"got Input/output error at .* Correct this"),
    ],
)
def test_the_sentence_about_a_failed_write_fits_its_cause(number: int, advice: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=advice) as raised, writing(tmp_path):
        raise OSError(number, os.strerror(number), "xx")
    assert "space" not in str(raised.value) and "room" not in str(raised.value)
    for full in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(UserError, match="room on the disk, got .* Free some space"), writing(tmp_path):
            raise OSError(full, os.strerror(full), "xx")


def test_room_on_the_disk_leaves_a_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, RESERVE + 10**6))
    assert free_bytes(tmp_path / "not/there") == RESERVE + 10**6
    check_space(10**6, tmp_path, what="values", advice="Use fewer.")
    with pytest.raises(UserError, match=r"values must fit on the disk, got 2 MB for 68 MB free at .*\. Use fewer\."):
        check_space(2 * 10**6, tmp_path, what="values", advice="Use fewer.")


def finished(folder: Path) -> Run:
    run = Run(folder, KIND, {"seed": 0})
    with run.open(Processes()):
        run.finish(TABLE)
    return run


def test_a_run_is_finished_by_its_manifest_alone(tmp_path: Path) -> None:
    run = finished(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "finished": None}))
    assert not run.is_finished
    with pytest.raises(UserError, match="run must be finished"):
        read_results(tmp_path, KIND)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert run.is_finished
    (tmp_path / "results.parquet").unlink()
    assert not run.is_finished


@pytest.mark.parametrize("name", ["results.csv", "results.parquet"])
def test_a_damaged_table_is_named_and_made_anew(tmp_path: Path, name: str) -> None:
    run = finished(tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(before[:-2] + b"\0\0")
    notes: list[str] = []
    if name == "results.parquet":
        with pytest.raises(UserError, match=r"results\.parquet must be as it was written"):
            read_results(tmp_path, KIND)
    with run.open(Processes(), on_note=notes.append):
        assert notes == [f"{name} is damaged: the run counts as unfinished"] and not run.is_finished
        run.finish(TABLE)
        assert run.is_finished
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize("name", ["results.csv", "results.parquet", "findings.csv", "map.csv", "other.csv"])
def test_a_run_without_a_file_that_it_needs_is_unfinished(tmp_path: Path, name: str, ledger: bool) -> None:
    kind = RunKind("geometry-sweep", writes=("*.csv",), needs=("findings.csv",), keeps=("map.csv", "map.parquet"))
    run, notes = Run(tmp_path, kind, {}), list[str]()
    with run.open(Processes(), on_note=notes.append):
        assert not run.is_finished
        for one in ("findings.csv", "map.csv", "other.csv"):
            commit(tmp_path / one, b"a\n1\n")
        run.finish(TABLE)
        assert run.is_finished  # map.parquet was never written
    if not ledger:  # as in a folder that was copied without hidden files
        (tmp_path / LEDGER).unlink()
    (tmp_path / name).unlink()
    with run.open(Processes(), on_note=notes.append):
        unknown = name == "map.csv" and not ledger  # whether the run wrote it
        assert run.is_finished == (unknown or name in ("results.csv", "other.csv"))
        assert (tmp_path / "results.csv").is_file()  # made from the other table
    assert notes == ([f"{name} is gone: the run counts as unfinished"] if not run.is_finished else [])
    with Run(tmp_path, kind, {}, overwrite=True).open(Processes(), on_note=notes.append):
        assert len(notes) <= 1 and not run.is_finished


def test_a_table_that_was_removed_is_written_again_from_the_other(tmp_path: Path) -> None:
    run = finished(tmp_path)
    before = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").unlink()
    with run.open(Processes()):
        assert run.is_finished
    assert (tmp_path / "results.csv").read_bytes() == before


@pytest.mark.parametrize("done", [True, False])
def test_a_run_that_was_copied_without_its_ledgers_goes_on(tmp_path: Path, done: bool) -> None:
    run = Run(tmp_path, RunKind("transfer-sweep", writes=("parts", "examples.parquet", "log.jsonl")), {})
    with run.open(Processes()):
        (tmp_path / "parts").mkdir()
        commit(tmp_path / "parts" / "0.parquet", b"a part")
        (tmp_path / "log.jsonl").write_text("{}\n")  # grows, and has no checksum in a ledger
        if done:
            run.finish(TABLE)
    for ledger in tmp_path.rglob(LEDGER):
        ledger.unlink()
    for _ in range(2):
        with run.open(Processes()):
            commit(tmp_path / "examples.parquet", b"rows")
            commit(tmp_path / "parts" / "1.parquet", b"another")
            with (tmp_path / "log.jsonl").open("a") as log:
                log.write("{}\n")
            assert is_whole(tmp_path / "parts" / "0.parquet") and not run.damaged and run.is_finished == done
    if done:
        pd.testing.assert_frame_equal(read_results(tmp_path, run.kind), TABLE)


def test_what_killed_processes_left_is_removed_but_not_beside_a_running_one(tmp_path: Path) -> None:
    with Run(tmp_path, KIND, {"seed": 0}).open(Processes()):
        pass
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".weights.1.tmp").write_bytes(b"half")
    (tmp_path / ".checkpoint-3.partial").mkdir()
    (tmp_path / ".checkpoint-3.partial" / "weights").write_bytes(b"half")
    with one_at_a_time(tmp_path / "checkpoint-2"), Run(tmp_path, KIND, {"seed": 0}).open(Processes()):
        left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(".*") if path.name != ".lock")
    assert left == ["checkpoint-2/.weights.1.tmp"]


def test_a_run_that_is_replaced_never_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("records.run._remove", killed)
    run = Run(tmp_path, KIND, {"seed": 1}, overwrite=True)
    with pytest.raises(KeyboardInterrupt), run.open(Processes()):
        pass
    assert (tmp_path / "results.parquet").is_file()
    with pytest.raises(UserError, match="run must be finished"):
        read_results(tmp_path, KIND)


def test_a_run_killed_before_its_manifest_has_its_name_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f".manifest.json.{os.getpid() + 1}.tmp").write_text('{"kind"')
    with Run(tmp_path, KIND, {"seed": 0}).open(Processes()):
        assert [path.name for path in tmp_path.glob(".*.tmp")] == []
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"] == {"seed": 0}
