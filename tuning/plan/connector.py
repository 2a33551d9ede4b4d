"""Newly initialised connectors: one linear map as in LLaVA, or two with GELU between them as in LLaVA-1.5.

transformers' LLaVA always has ``linear_1``, an activation and ``linear_2``. One linear map is stored as ``linear_1``,
the activation "linear" (the identity) and an identity matrix as ``linear_2``, which never trains, so that the folder
opens in plain transformers.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from models.llava import Llava
from tuning.config import Connector

_ACTIVATION = {"linear": "linear", "mlp": "gelu"}


def is_linear(llava: Llava) -> bool:
    """True if the connector is one linear map: its second map is the identity, which on meta the config implies."""
    has_activation = bool(llava.config.projector_hidden_act != "linear")
    if has_activation or llava.device.type == "meta":
        return not has_activation
    projector: Any = llava.projector
    second = projector.linear_2
    with torch.no_grad():
        return bool(
            torch.equal(second.weight, torch.eye(*second.weight.shape, dtype=second.weight.dtype).to(second.weight))
            and (second.bias is None or not bool(second.bias.any()))
        )


def with_connector(llava: Llava, connector: Connector, *, seed: int) -> Llava:
    """``llava``, changed in place, with a new connector; unchanged for ``"keep"``.

    Args:
        llava: The model.
        connector: ``"linear"`` as in LLaVA, ``"mlp"`` as in LLaVA-1.5.
        seed: Seed of the new weights, which follow torch's default for linear maps, as in LLaVA.

    Returns:
        The same model with a new weight hash.

    Source: Liu et al. 2023, "Visual Instruction Tuning", arXiv 2304.08485 (linear); Liu et al. 2024, "Improved
        Baselines with Visual Instruction Tuning", arXiv 2310.03744 (mlp).
    """
    if connector == "keep":
        return llava
    projector: Any = llava.projector
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    for linear in (projector.linear_1, projector.linear_2):
        bias, device = linear.bias is not None, "meta" if linear.weight.device.type == "meta" else None
        new = nn.Linear(linear.in_features, linear.out_features, bias=bias, device=device)
        linear.load_state_dict(new.state_dict())
    torch.random.set_rng_state(state)
    if connector == "linear":
        nn.init.eye_(projector.linear_2.weight)
        if projector.linear_2.bias is not None:
            nn.init.zeros_(projector.linear_2.bias)
    llava.config.projector_hidden_act = _ACTIVATION[connector]
    projector.act = ACT2FN[_ACTIVATION[connector]]
    return replace(llava, weight_hash=f"{llava.weight_hash}-{connector}@{seed}")
