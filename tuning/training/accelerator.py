"""The accelerator of a training run: one device per process, one precision, FSDP if the launcher selects it."""

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from tasks.errors import UserError


def check_launcher(*, bf16: bool) -> None:
    """Raise ``UserError`` if the launcher selects DeepSpeed or another precision than the run's."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError("processes must be shared by DDP or FSDP, got DeepSpeed. Launch with --use_fsdp.")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16" if bf16 else "no"):
        raise UserError(
            f"precision must be set by the run, got {precision!r} from the launcher. Launch with --mixed_precision no, "
            "and give --dtype bfloat16 to layerwise-finetune."
        )


def make_accelerator(device: str, *, bf16: bool, find_unused: bool) -> Accelerator:
    """The accelerator of a run on its device.

    Args:
        device: Device of this process.
        bf16: Run matrix products in bfloat16.
        find_unused: A step may leave some trained parameters without a gradient.
    """
    check_launcher(bf16=bf16)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # accelerate uses the current device
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process may differ in precision
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if bf16 else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused)],
    )
