"""Where the seconds of a run went, and what the estimate before it says."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from records.manifest import RunKind, read_manifest
from records.processes import Processes
from records.run import Run, read_timings
from records.timings import Timings, clock_text, describe_seconds

KIND = RunKind("made-sweep")


def clock(*times: float) -> Iterator[float]:
    return iter(times)


def test_stages_add_up_and_the_rest_is_other() -> None:
    ticks = clock(0, 1, 4, 4, 6, 10, 11, 20)
    timings = Timings(lambda: next(ticks))
    for name in ("capture", "fits", "capture"):
        with timings.stage(name):
            pass
    assert timings.seconds == {"capture": 4.0, "fits": 2.0}
    assert timings.elapsed() == {"capture": 4.0, "fits": 2.0, "other": 14.0}


def test_a_stage_that_fails_is_counted_too() -> None:
    ticks = clock(0, 1, 3)
    timings = Timings(lambda: next(ticks))
    with pytest.raises(ValueError, match="stop"), timings.stage("capture"):
        raise ValueError("stop")
    assert timings.seconds == {"capture": 2.0}


def test_the_line_names_the_longest_stage_first_and_leaves_out_what_took_no_time() -> None:
    assert describe_seconds({"load": 10.0, "fits": 89.9, "figures": 0.1}) == "100 s: fits 90 s, load 10 s"
    assert [clock_text(seconds) for seconds in (0.0, 9.4, 119.4, 121, 7199, 7260)] == [
        "0.0 s", "9 s", "119 s", "2 min 1 s", "119 min 59 s", "2 h 1 min",
    ]  # fmt: skip


def test_a_run_records_its_timings_at_the_end_of_the_manifest_and_a_resumed_run_still_matches(tmp_path: Path) -> None:
    results = pd.DataFrame({"layer": [0]})
    first = Run(tmp_path / "run", KIND, {"seed": 0})
    with first.open(Processes(), model="made"):
        with first.timings.stage("fits"):
            pass
        first.finish(results)
        assert "figures" not in (read_manifest(tmp_path / "run", KIND) or {})["timings"]
        with first.drawing():
            pass
    manifest = read_manifest(tmp_path / "run", KIND) or {}
    assert list(manifest)[-1] == "timings" and list(manifest["timings"]) == ["fits", "figures", "other"]
    assert read_timings(tmp_path / "run", KIND)
    again = Run(tmp_path / "run", KIND, {"seed": 0})  # the same settings: no error, though the times differ
    with again.open(Processes(), model="made"):
        assert again.is_finished
    assert (read_manifest(tmp_path / "run", KIND) or {})["timings"] == manifest["timings"]
    manifest.pop("timings")
    (tmp_path / "old").mkdir()
    assert read_timings(tmp_path / "old", KIND) == ""
