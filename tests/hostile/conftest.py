"""Fixtures: the inputs of all commands, and an uninterrupted run of each."""

import shutil
from pathlib import Path

import pytest

from tests.hostile.commands import FOUR
from tests.hostile.inputs import write_inputs
from tests.hostile.judge import Outcome, start, wait
from tests.hostile.whole_runs import arguments


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The inputs of all commands."""
    folder = tmp_path_factory.mktemp("kills")
    write_inputs(folder)
    shutil.copyfile(folder / "turns.json", folder / "questions.json")
    shutil.copytree(checkpoint, folder / "model")
    return folder


@pytest.fixture(scope="session")
def whole(folder: Path) -> dict[str, Outcome]:
    """An uninterrupted run of each command, in ``whole-COMMAND``."""
    found = {}
    for command in FOUR:
        found[command] = wait(start(command, arguments(command, f"whole-{command}"), folder), folder, 120)
        assert found[command].status == 0, found[command].err
    return found
