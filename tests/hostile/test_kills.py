"""Commands that are killed anywhere and started again end with the bytes of a run that was not killed."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.commands import FOUR
from tests.hostile.judge import Outcome, looks_complete, start, wait
from tests.hostile.whole_runs import arguments, contents

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def results(run: Path) -> dict[str, Any]:
    """All files but figures, which are drawn once the results are complete."""
    return {name: data for name, data in contents(run).items() if not name.startswith("figures/")}


def kill_and_resume(
    command: str, folder: Path, whole: Outcome, run: Path, draws: random.Random, kills: int
) -> list[str]:
    """Kill the command ``kills`` times at random moments, start it once more, and compare; returns what differs."""
    for kill in range(kills):
        sent, moment = SIGNALS[draws.randrange(3)], draws.random() * whole.seconds
        done: list[int] = []

        def at(passed: float, sent: int = sent, moment: float = moment, done: list[int] = done) -> int | None:
            if passed < moment or done:
                return None
            done.append(sent)
            return sent

        outcome = wait(start(command, arguments(command, str(run)), folder), folder, 120, at)
        if outcome.status not in (0, 130, -sent) or "Traceback" in outcome.err:
            return [f"kill {kill} by {sent.name} at {moment:.2f} s: status {outcome.status}: {outcome.err[-300:]}"]
        if outcome.status != 0 and looks_complete(run) and results(run) != results(folder / f"whole-{command}"):
            return [f"kill {kill} by {sent.name} at {moment:.2f} s: looks complete"]
    outcome = wait(start(command, arguments(command, str(run)), folder), folder, 120)
    if outcome.status != 0:
        return [f"does not resume: status {outcome.status}: {outcome.err[-300:]}"]
    ours, theirs = contents(run), contents(folder / f"whole-{command}")
    left = [path.name for path in run.rglob(".*") if path.name.endswith((".tmp", ".partial"))]
    return [f"left: {left}"] * bool(left) + [
        f"{name} differs" for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)
    ]


@pytest.mark.parametrize("command", FOUR)
def test_a_run_killed_twice_ends_with_the_bytes_of_a_whole_one(
    command: str, folder: Path, whole: dict[str, Outcome], tmp_path: Path
) -> None:
    draws = random.Random(f"{command} 0")
    assert kill_and_resume(command, folder, whole[command], tmp_path / "run", draws, 2) == []


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(5))
@pytest.mark.parametrize("command", FOUR)
def test_a_hundred_kills_change_no_byte(
    command: str, round_: int, folder: Path, whole: dict[str, Outcome], tmp_path: Path
) -> None:
    draws = random.Random(f"{command} {round_ + 1}")
    assert kill_and_resume(command, folder, whole[command], tmp_path / "run", draws, 5) == []
