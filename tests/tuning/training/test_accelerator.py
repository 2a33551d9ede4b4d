"""The accelerator of a run: one device per process, and no setting of the launcher that contradicts the run."""

import pytest
import torch
from accelerate import Accelerator

from tasks.errors import UserError
from tuning.training import accelerator
from tuning.training.accelerator import make_accelerator


def test_a_process_uses_the_card_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    given: list[bool] = []
    monkeypatch.setattr(torch.cuda, "set_device", moved.append)

    def on_cpu(*, cpu: bool, **more: object) -> Accelerator:
        given.append(cpu)
        return Accelerator(cpu=True)

    monkeypatch.setattr(accelerator, "Accelerator", on_cpu)
    make_accelerator("cuda:5", bf16=False, find_unused=True)
    make_accelerator("cpu", bf16=False, find_unused=True)
    assert (moved, given) == (["cuda:5"], [False, True])


def test_runs_of_different_precision_follow_each_other_in_one_process() -> None:
    for bf16 in (False, True, False):
        made: Accelerator = make_accelerator("cpu", bf16=bf16, find_unused=False)
        assert (made.device.type, made.mixed_precision) == ("cpu", "bf16" if bf16 else "no")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "processes must be shared by DDP or FSDP, got DeepSpeed"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision must be set by the run, got 'bf16' from the launcher"),
    ],
)
def test_launcher_settings_that_contradict_the_run_raise(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        make_accelerator("cpu", bf16=False, find_unused=False)
    if value == "bf16":
        assert make_accelerator("cpu", bf16=True, find_unused=False).mixed_precision == "bf16"
