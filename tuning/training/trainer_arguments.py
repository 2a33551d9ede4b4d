"""Trainer's arguments for one run, on the device that was asked for.

Trainer takes every card it sees, from ``cuda:0`` on, and spreads each batch over them. Here a process has one device:
several are several processes (``accelerate launch``).
"""

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from tasks.errors import UserError
from tuning.config import Optimisation, Running


def bind(arguments: TrainingArguments, device: str) -> TrainingArguments:
    """The arguments for a process that no launcher started, on this GPU alone, whatever else the machine has."""
    chosen = arguments.device
    if chosen.type == "cuda" and arguments.world_size == 1:
        chosen = torch.device(device)
        arguments._n_gpu = 1  # more would multiply the batch
        arguments.__dict__["_setup_devices"] = chosen  # a cached property, which ``device`` reads
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # accelerate moves things to the current one
    return arguments


def check_launcher(running: Running) -> None:
    """Passes if the launcher asks for nothing that the run would not do.

    Raises:
        UserError: If it asks for DeepSpeed, or for a precision of its own.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError("processes must be shared by DDP or FSDP, got DeepSpeed. Launch with --use_fsdp.")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16" if running.bf16 else "no"):
        raise UserError(
            f"precision must be set by the run, got {precision!r} from the launcher. Launch with --mixed_precision no, "
            "and give --bf16 to layerwise-finetune."
        )


def training_arguments(
    optimisation: Optimisation, running: Running, folder: Path, *, find_unused: bool
) -> TrainingArguments:
    """What Trainer needs to know of a run.

    Args:
        optimisation: How weights move.
        running: How the run goes about it.
        folder: Of the run.
        find_unused: Whether a step may give some planned parameters no gradient.

    Raises:
        UserError: As of ``check_launcher``.
    """
    check_launcher(running)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=optimisation.batch_size,
        gradient_accumulation_steps=optimisation.grad_accum,
        num_train_epochs=optimisation.epochs,
        max_steps=optimisation.steps or -1,
        learning_rate=optimisation.lr,
        max_grad_norm=optimisation.clip,
        bf16=running.bf16,
        use_cpu=running.device == "cpu",
        seed=optimisation.seed,
        logging_steps=running.log_every,
        save_strategy="steps" if running.save_every else "no",
        save_steps=running.save_every or 1,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=running.workers,
        dataloader_pin_memory=running.device != "cpu",
        ddp_find_unused_parameters=find_unused,
        logging_nan_inf_filter=False,
        label_names=["labels"],
    )
    return bind(arguments, running.device)
