"""Under FSDP each process holds a shard of every parameter: how a whole tensor is gathered, and how it is spread again.

What is not sharded passes through unchanged, so callers need not ask. Gathering is done by all processes together:
each must call it for the same tensors in the same order.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from models.llava import Llava
from records.processes import launched
from tasks.errors import UserError


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its shards, detached."""
    plain = tensor.detach()
    return plain.full_tensor() if isinstance(plain, DTensor) else plain


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, one after the other, so that no device ever holds all of them.

    Args:
        tensors: By name, in the same order in every process.
        keep: Whether this process wants them; one that does not still takes part.
    """
    found = {}
    for name, tensor in tensors.items():
        own = whole(tensor)
        if keep:
            found[name] = own.to("cpu").contiguous()
    return found


def placed(value: Tensor, like: Tensor) -> Tensor:
    """``value`` where ``like`` is, and sharded as it is."""
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


def reshard(model: nn.Module) -> None:
    """Back to shards after a forward that no backward follows, which leaves the outermost unit whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def describe(model: nn.Module) -> str | None:
    """How much of a sharded model this process holds; None if it is not sharded."""
    parameters = list(model.parameters())
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return None
    own = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return f"sharded by FSDP: process 0 holds {own:,} of {sum(p.numel() for p in parameters):,} numbers"


def asked_for() -> bool:
    """Whether accelerate's config or launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def will_shard() -> bool:
    """Whether this process will hold a shard of the model: FSDP was asked for, and there are several processes."""
    return asked_for() and launched() > 1


def set_up(accelerator: Any, llava: Llava) -> bool:
    """Makes accelerate shard the model where that was asked for, on CPUs too; whether it will.

    accelerate 1.15 looks at its FSDP settings on GPUs and their like alone; processes on CPUs would silently copy the
    model instead. The units that are sharded are the language model's blocks; the vision tower stays in one unit with
    the rest, for a process whose batch shows no picture does not run it, and the others would wait for its part.

    Raises:
        UserError: If FSDP's first version is asked for, which shards frozen and trained weights as one.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if not asked_for() or accelerator.num_processes < 2:
        return False
    state = accelerator.state
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    plugin = state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UserError(
            f"FSDP must be its version 2, got {plugin.fsdp_version}. Set fsdp_version: 2 in accelerate's config, or "
            "give --fsdp_version 2 to accelerate launch."
        )
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = [type(llava.blocks[0]).__name__]
    return True


def as_number(value: Any) -> float | None:
    """A norm, sharded or not, as a number."""
    if value is None:
        return None
    return float(value.full_tensor() if isinstance(value, DTensor) else torch.as_tensor(value))
