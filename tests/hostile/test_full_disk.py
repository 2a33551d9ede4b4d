"""A disk that is full at any file of a run: one sentence, nothing that looks complete, and the run goes on later."""

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.commands import COST, PATCH, PROBE, TUNE
from tests.hostile.judge import Outcome, faults, start, wait
from tests.hostile.whole_runs import arguments, contents

FULL = OSError(errno.ENOSPC, "No space left on device")
# command -> names of files at which the disk is full
AT: dict[str, tuple[str, ...]] = {
    PROBE: ("manifest.json", "examples.parquet", "00001.safetensors", "probes.safetensors", "maps/0.png", "maps.json",
            "maps.parquet", "results.csv", "results.parquet"),
    PATCH: ("pairs.parquet", "cells/00001.safetensors", "values.parquet", "results.parquet"),
    COST: ("batches/00001.parquet", "answers.parquet", "results.parquet"),
    TUNE: ("plan.json", "evaluations.csv", "model.safetensors", "config.json", "cost.json"),
}  # fmt: skip
# command -> functions of libraries that write files themselves
BY: dict[str, tuple[str, ...]] = {
    PROBE: ("matplotlib.figure.Figure.savefig",),
    PATCH: ("matplotlib.figure.Figure.savefig",),
    COST: ("matplotlib.figure.Figure.savefig",),
    TUNE: (
        "tuning.training.checkpoint.save_file",
        "transformers.PreTrainedModel.save_pretrained",
        "tuning.training.trainer.add_to_log",
    ),
}
OFTEN = ("maps.parquet", "cells/00001.safetensors", "results.parquet", "tuning.training.checkpoint.save_file")  # in CI
CASES = [
    pytest.param(
        command,
        name,
        marks=() if name in OFTEN and (name != "results.parquet" or command == COST) else pytest.mark.slow,
    )
    for command in AT
    for name in (*AT[command], *BY[command])
]


def fill(name: str, *, by_library: bool) -> None:
    """Leave no room for files of this name, or for what this function writes, in the rest of this process."""
    replace = os.replace

    def full(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith(name):
            raise FULL
        replace(source, target, **options)

    def no_room(*arguments: object, **options: object) -> None:
        raise FULL

    if by_library:
        pytest.MonkeyPatch().setattr(name, no_room)
    else:
        os.replace = full


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(
    command: str, name: str, folder: Path, whole: dict[str, Outcome], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    before = partial(fill, name, by_library=name in BY[command])
    outcome = wait(start(command, arguments(command, str(run)), folder, before=before), folder, 60)
    drawn = "savefig" in name  # figures are drawn after the results are complete
    assert faults(outcome, run, fresh=not drawn) == [] and outcome.status == 2, outcome
    assert "No space left on device" in outcome.err or "room" in outcome.err
    again = wait(start(command, arguments(command, str(run)), folder), folder, 60)
    assert again.status == 0, again.err
    ours, theirs = contents(run), contents(folder / f"whole-{command}")
    assert [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)] == []
