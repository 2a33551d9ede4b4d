"""Gather and shard tensors under FSDP, where each process holds a shard of every parameter.

Tensors that are not sharded pass through unchanged. Every process must gather the same tensors in the same order.
"""

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from models.llava import Llava
from records.processes import launched
from tasks.errors import UserError


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from all shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Full tensors on the CPU, gathered one by one to limit the device's memory; empty if ``keep`` is False."""
    found = {}
    for name, tensor in tensors.items():
        gathered_tensor = whole(tensor.detach())  # every process takes part
        if keep:
            found[name] = gathered_tensor.to("cpu").contiguous()
    return found


def placed(value: Tensor, like: Tensor) -> Tensor:
    """``value`` on the device of ``like``, sharded like it."""
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements) if isinstance(like, DTensor) else moved


def reshard(model: nn.Module) -> None:
    """Reshard a model after a forward pass without a backward pass, which leaves the outermost unit gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def describe(model: nn.Module) -> str:
    """One line with the part of a sharded model that this process holds."""
    parameters = list(model.parameters())
    own = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return f"sharded by FSDP: process 0 holds {own:,} of {sum(p.numel() for p in parameters):,} numbers"


def is_requested() -> bool:
    """True if accelerate's config or launcher selects FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def will_shard() -> bool:
    """True if FSDP is requested and there are several processes."""
    return is_requested() and launched() > 1


def prepare_fsdp(accelerator: Any, llava: Llava) -> bool:
    """Configure accelerate for FSDP if the launcher requests it; True if the model will be sharded.

    accelerate 1.15 applies its FSDP settings on GPUs only; on CPUs each process would silently train a full copy. Each
    block of the language model is one unit. The vision tower stays in the root unit: a process whose batch has no
    picture does not run the tower, and the others would wait for its part.

    Raises ``UserError`` for version 1 of FSDP, which shards frozen and trained weights together.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if not is_requested() or accelerator.num_processes < 2:
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


def as_number(norm: Tensor | None) -> float:
    """A gradient norm as a float, gathered from all shards; 0 if there is no gradient."""
    return 0.0 if norm is None else float(whole(norm))
