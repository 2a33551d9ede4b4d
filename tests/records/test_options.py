from pathlib import Path

import pytest

from records.processes import Processes, join_processes, own_device
from records.settings import plain, read_yaml, slug
from tasks.errors import UserError


def test_keys_of_a_file_are_option_names_with_either_mark(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("batch-size: 3\ndry_run: true\n")
    assert read_yaml(path, {"batch_size", "dry_run"}, "patch-sweep") == {"batch_size": 3, "dry_run": True}
    path.write_text("")
    assert read_yaml(path, {"seed"}, "patch-sweep") == {}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("seeed: 3", "an option of patch-sweep, got 'seeed' .*Did you mean 'seed'?"),
        ("unlike: 3", "See patch-sweep --help"),
        ("- seed", "mapping of options, got a list"),
        ("seed: [", "readable YAML"),
        ("batch-size: 1\nbatch_size: 2", "given once"),
    ],
)
def test_file_that_cannot_be_used_is_refused_in_the_name_of_the_command(tmp_path: Path, text: str, phrase: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=phrase):
        read_yaml(path, {"seed", "batch_size"}, "patch-sweep")


def test_settings_are_written_as_json_gives_them_back() -> None:
    assert [plain(value) for value in (("a", "b"), Path("x/y"), 3, None)] == [["a", "b"], "x/y", 3, None]


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
