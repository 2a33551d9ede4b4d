from pathlib import Path

import pytest

from records.options import plain, slug
from records.processes import Processes, join_processes, own_device


def test_settings_are_written_as_json_gives_them_back() -> None:
    assert [plain(value) for value in (("a", Path("b")), Path("x/y"), 3, None)] == [["a", "b"], "x/y", 3, None]
    assert plain({"a": (1, 2)}) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b-hf"),
        ("a/b c.jsonl", "b-c"),
        ("random:tiny", "random-tiny"),
        ("/", "run"),
    ],
)
def test_folders_are_named_after_model_and_data(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_one_process_leads_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = join_processes("cpu")
    alone.wait()
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
    assert not Processes(rank=1, world=2).is_main


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:one"])
def test_device_that_no_machine_has_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device must be"):
        own_device(device)
    assert own_device("cpu") == "cpu"
