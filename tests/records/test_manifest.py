import json
import os
from pathlib import Path

import pandas as pd
import pytest

from records.manifest import (
    RunKind,
    difference,
    new_manifest,
    read_manifest,
    write_atomically,
    write_manifest,
)
from records.run import check_folder, open_run
from records.tables import read_results, write_results
from tasks.errors import UserError, user_errors

KIND = RunKind("probe-sweep", writes=("activations",))
OTHER = RunKind("patch-sweep", writes=("cells",))
MANIFEST = {"kind": "laccolith probe-sweep", "settings": {"seed": 0, "folds": 5}}


def test_atomic_write_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(old: Path, new: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_difference_names_the_first_field_that_differs() -> None:
    changed = {**MANIFEST, "settings": {"seed": 0, "folds": 3}}
    assert difference(MANIFEST, MANIFEST) is None
    assert difference(MANIFEST, changed) == "settings.folds was 5, is 3"


def test_equal_manifest_resumes_and_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    open_run(tmp_path, MANIFEST, KIND, overwrite=False)
    kept, leftover = tmp_path / "activations/a/00000.safetensors", tmp_path / "activations/a/.00001.safetensors.7.tmp"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    leftover.write_bytes(b"x")
    open_run(tmp_path, MANIFEST, KIND, overwrite=False)
    assert kept.exists()
    assert not leftover.exists()


def test_overwrite_replaces_a_different_run_whole(tmp_path: Path) -> None:
    open_run(tmp_path, MANIFEST, KIND, overwrite=False)
    (tmp_path / "results.parquet").write_bytes(b"x")
    changed = {**MANIFEST, "settings": {"seed": 1}}
    with pytest.raises(UserError, match=r"differs: settings\.seed was 0, is 1\..*--overwrite"):
        open_run(tmp_path, changed, KIND, overwrite=False)
    assert (tmp_path / "results.parquet").exists()
    open_run(tmp_path, changed, KIND, overwrite=True)
    assert not (tmp_path / "results.parquet").exists()
    assert read_manifest(tmp_path, KIND) == changed


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_foreign_files_is_refused_untouched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"must be empty or contain a run.*'thesis\.tex'"):
        check_folder(tmp_path, MANIFEST, KIND, overwrite=overwrite)
    open_run(tmp_path / "run", MANIFEST, KIND, overwrite=False)
    (tmp_path / "run" / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.md"):
        open_run(tmp_path / "run", MANIFEST, KIND, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_run_of_another_command_is_refused_and_kept(tmp_path: Path) -> None:
    write_manifest(tmp_path, new_manifest(OTHER, {"seed": 0}))
    (tmp_path / "cells").mkdir()
    assert check_folder(tmp_path, new_manifest(OTHER, {"seed": 0}), OTHER, overwrite=False)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="must be a folder of probe-sweep"):
            open_run(tmp_path, MANIFEST, KIND, overwrite=overwrite)
    assert (tmp_path / "cells").exists()


def test_what_one_command_writes_is_foreign_to_another(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    (tmp_path / "activations").mkdir()
    assert check_folder(tmp_path, MANIFEST, KIND, overwrite=False)
    (tmp_path / "cells").mkdir()
    with pytest.raises(UserError, match="got 'cells'"):
        check_folder(tmp_path, MANIFEST, KIND, overwrite=False)


def test_results_are_there_only_once_both_tables_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, MANIFEST)
    table = pd.DataFrame({"a": [1.5, None], "b": ["x", "y"]})

    def refuse(self: pd.DataFrame, *arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", refuse)
        with pytest.raises(KeyboardInterrupt):
            write_results(tmp_path, table)
    with pytest.raises(UserError, match="must be finished"):
        read_results(tmp_path, KIND)
    write_results(tmp_path, table)
    pd.testing.assert_frame_equal(read_results(tmp_path, KIND), table)
    with pytest.raises(UserError, match="that probe-sweep wrote"):
        read_results(tmp_path / "figures", KIND)


def test_refusing_turns_the_named_errors_into_one_line_and_no_others() -> None:
    with pytest.raises(UserError, match=r"^two lines$"), user_errors(OSError):
        raise OSError("two\nlines")
    with pytest.raises(KeyError), user_errors(OSError):
        raise KeyError("a bug of ours")


def test_manifest_survives_json_unchanged(tmp_path: Path) -> None:
    manifest = new_manifest(KIND, {"seed": 0, "site": ["z"]})
    assert json.loads(json.dumps(manifest)) == manifest
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path, KIND) == manifest


def test_a_folder_with_a_null_byte_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match="out must be a path without null bytes"):
        check_folder(Path("\0run"), MANIFEST, KIND, overwrite=False)
