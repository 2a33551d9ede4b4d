"""What users bring, kind by kind: every input ends in right numbers or in one sentence. The whole table is slow."""

import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from tests.hostile.commands import CAPTURE, FIGURES, FOUR, NEWER, TUNE, line
from tests.hostile.inputs import CASES, NEWER_CASES, REMOVED, Case, write_inputs
from tests.hostile.judge import Outcome, faults, looks_complete, snapshot, start, wait

N_SAMPLE, N_NEWER = 60, 40


def sample(cases: Sequence[Case], n: int, seed: int = 0) -> list[Case]:
    """``n`` cases in turn from every kind and command."""
    shuffled = random.Random(seed).sample(cases, len(cases))
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in shuffled:
        groups[case.kind, case.command].append(case)
    chosen: list[Case] = []
    while len(chosen) < n:
        for group in groups.values():
            if group and len(chosen) < n:
                chosen.append(group.pop())
    return chosen


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A folder of valid inputs, with a copy of the checkpoint and stored activations."""
    folder = tmp_path_factory.mktemp("hostile")
    write_inputs(folder)
    shutil.copytree(checkpoint, folder / "model")
    outcome = call(CAPTURE, [*line(CAPTURE, checkpoint)[:-1], "stored"], folder, seconds=60)
    assert outcome.status == 0, outcome.err
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, inputs: Path, checkpoint: Path) -> dict[str, Path]:
    """A finished run of each command on the valid inputs."""
    found = {}
    for command in (*FOUR, *NEWER):
        folder = tmp_path_factory.mktemp("finished") / "inputs"
        shutil.copytree(inputs, folder, symlinks=True)
        extra = ["--save-every", "1"] if command == TUNE else []
        outcome = call(command, [*line(command, checkpoint), *extra], folder, seconds=60)
        assert outcome.status == 0, outcome.err
        assert looks_complete(folder / "run")
        found[command] = folder / "run"
    return found


def call(command: str, arguments: Sequence[str], folder: Path, seconds: float = 20.0) -> Outcome:
    return wait(start(command, arguments, folder), folder, seconds)


def table(run: Path) -> pd.DataFrame:
    """The results of a run, without what is timed; for tuning the logged losses."""
    if (run / "log.jsonl").is_file():
        return pd.read_json(run / "log.jsonl", lines=True)
    return pd.read_parquet(run / "results.parquet")


def judge(case: Case, folder: Path, inputs: Path, runs: dict[str, Path], checkpoint: Path) -> list[str]:
    """Run a case in a copy of the inputs, and return what is wrong with its end."""
    shutil.copytree(inputs, folder, symlinks=True)
    state, _, of = case.starts_from.partition(":")
    command = of or case.command
    if state:
        shutil.copytree(runs[command], folder / "run")
    if state == "stopped":  # as if it had been killed before its last files
        stop(folder / "run")
    arguments = line(case.command, checkpoint)
    if state and command == TUNE and case.command == TUNE:
        arguments += ["--save-every", "1"]
    arguments += case.make(folder)
    before = snapshot(folder)
    outcome = call(case.command, arguments, folder)
    found = faults(outcome, folder / "run", fresh=not state)
    if snapshot(folder) != before:
        found.append(f"written outside the run: {sorted(snapshot(folder).keys() ^ before.keys())[:3] or 'a change'}")
    if (folder.parent / "outside").exists():
        found.append("a file outside the folder")
    wanted = {"refused": (2,), "runs": (0,), "same": (0,), "either": (0, 2)}[case.expect]
    if not found and outcome.status not in wanted:
        found.append(f"status {outcome.status} where {case.expect} is right: {(outcome.err or outcome.out)[-200:]}")
    if not found and (case.expect == "same" or (case.kind == "stored" and outcome.status == 0)):
        ours, theirs = table(folder / "run"), table(runs[command])
        if case.kind == "stored":  # a damaged manifest may no longer name the model
            ours, theirs = (each.select_dtypes("number") for each in (ours, theirs))
        if not ours.equals(theirs):
            found.append(f"other numbers: {ours.compare(theirs).head(3) if ours.shape == theirs.shape else ours.shape}")
    return found


def stop(run: Path) -> None:
    """Make a finished run as one that was killed before its last files: the manifest says so."""
    import json

    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": None}))
    for name in REMOVED:
        (run / name).unlink(missing_ok=True)


def test_the_tables_have_every_kind_and_enough_rows() -> None:
    assert len(CASES) >= 300
    for cases, n, commands in ((CASES, N_SAMPLE, {*FOUR, FIGURES}), (NEWER_CASES, N_NEWER, {*NEWER})):
        assert len({str(case) for case in cases}) == len(cases)
        assert {case.kind for case in sample(cases, n)} == {case.kind for case in cases}
        assert {case.command for case in sample(cases, n)} == commands


@pytest.mark.parametrize("case", [*sample(CASES, N_SAMPLE), *sample(NEWER_CASES, N_NEWER)], ids=str)
def test_a_sample_ends_in_right_numbers_or_one_sentence(
    case: Case, tmp_path: Path, inputs: Path, runs: dict[str, Path], checkpoint: Path
) -> None:
    assert judge(case, tmp_path / "case", inputs, runs, checkpoint) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *NEWER_CASES], ids=str)
def test_every_input_ends_in_right_numbers_or_one_sentence(
    case: Case, tmp_path: Path, inputs: Path, runs: dict[str, Path], checkpoint: Path
) -> None:
    assert judge(case, tmp_path / "case", inputs, runs, checkpoint) == []
