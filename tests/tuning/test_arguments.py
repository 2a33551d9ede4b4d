"""Trainer's arguments: one device for a process, and nothing from the launcher that the run does not know of."""

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from tasks.errors import UserError
from tuning.config import Optimisation, Running
from tuning.training.trainer_arguments import bind, training_arguments


def test_a_process_has_one_card_whatever_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with eight cards Trainer would take cuda:0 and make batches eight times as large."""
    moved: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", moved.append)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=3)
    arguments.__dict__["_setup_devices"], arguments._n_gpu = torch.device("cuda:0"), 8
    assert (arguments.n_gpu, arguments.train_batch_size, arguments.device.index) == (8, 24, 0)
    bind(arguments, "cuda:5")
    assert (arguments.n_gpu, arguments.train_batch_size, arguments.device.index) == (1, 3, 5)
    assert moved == [torch.device("cuda:5")]


def test_on_a_cpu_nothing_is_pinned(tmp_path: Path) -> None:
    arguments = training_arguments(Optimisation(batch_size=3), Running(workers=2), tmp_path, find_unused=True)
    assert (arguments.device.type, arguments.n_gpu, arguments.train_batch_size) == ("cpu", 0, 3)
    assert (arguments.dataloader_num_workers, arguments.ddp_find_unused_parameters) == (2, True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "processes must be shared by DDP or FSDP, got DeepSpeed"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision must be set by the run, got 'bf16' from the launcher"),
    ],
)
def test_what_the_launcher_asks_for_beyond_the_run_is_refused(
    name: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        training_arguments(Optimisation(), Running(), tmp_path, find_unused=False)
    if value == "bf16":
        assert training_arguments(Optimisation(), Running(bf16=True), tmp_path, find_unused=False).bf16
