"""The life of a run directory: checked, locked, resumed, replaced, finished."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from records.manifest import RunKind
from records.processes import Processes
from records.run import RESERVE, Run, check_space, free_bytes, writing
from records.tables import read_results
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


def test_room_on_the_disk_leaves_a_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(0, 0, RESERVE + 10**6))
    assert free_bytes(tmp_path / "not/there") == RESERVE + 10**6
    check_space(10**6, tmp_path, what="values", advice="Use fewer.")
    with pytest.raises(UserError, match=r"values must fit on the disk, got 2 MB for 68 MB free at .*\. Use fewer\."):
        check_space(2 * 10**6, tmp_path, what="values", advice="Use fewer.")
