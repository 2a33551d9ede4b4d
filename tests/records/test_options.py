from pathlib import Path

import pytest

from interventions.config import PairOptions, PatchConfig
from probes.config import DataOptions, SweepConfig
from records.options import plain, settings_of, slug
from records.processes import Processes, join_processes, own_device
from tasks.errors import UserError
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.pairs import make_pairs
from tuning.config import Optimisation, TuningConfig
from tuning.data.scene_mix import SceneMix


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


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SweepConfig(data=DataOptions(limit=10**12)), "limit"),
        (PatchConfig(pairs=PairOptions(limit=-(10**12))), "limit"),
        (PatchConfig(noise_seeds=(0, 2**40)), "noise-seed"),
        (TuningConfig(optimisation=Optimisation(steps=10**400)), "steps"),
        (TuningConfig(optimisation=Optimisation(epochs=float("inf"))), "epochs"),
        (TuningConfig(optimisation=Optimisation(lr=float("nan"))), "lr"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused_before_anything_is_made(config: object, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be (between|a finite number)"):
        settings_of(config)


def test_scenes_have_an_upper_number() -> None:
    for make in (
        lambda n: scenes_dataset(n=n),
        lambda n: make_pairs("kind", n=n),
        SceneMix,
    ):
        with pytest.raises(UserError, match="1,000,000"):
            make(10**9)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:one"])
def test_device_that_no_machine_has_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device must be"):
        own_device(device)
    assert own_device("cpu") == "cpu"
