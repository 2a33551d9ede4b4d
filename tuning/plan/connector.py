"""LLaVA's and LLaVA-1.5's connectors, fresh: one linear map, or two with GELU between them.

transformers' LLaVA always has ``linear_1``, an activation and ``linear_2``. One linear map is written as ``linear_1``
with the activation "linear" (which does nothing) and the identity as ``linear_2``, which never trains. So the folder
opens in plain transformers, and what is computed is exactly one linear map.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from transformers.activations import ACT2FN

from models.llava import Llava

Connector = Literal["keep", "linear", "mlp"]
_ACTIVATION = {"linear": "linear", "mlp": "gelu"}


def is_linear(llava: Llava) -> bool:
    """Whether the connector is one linear map, its second the identity."""
    projector: Any = llava.projector
    second = projector.linear_2
    with torch.no_grad():
        return (
            llava.config.projector_hidden_act == "linear"
            and second.weight.device.type != "meta"
            and torch.equal(second.weight, torch.eye(*second.weight.shape, dtype=second.weight.dtype).to(second.weight))
            and (second.bias is None or not bool(second.bias.any()))
        )


def with_connector(llava: Llava, connector: Connector, *, seed: int) -> Llava:
    """``llava``, changed in place, with a fresh connector; as it is under ``"keep"``.

    Args:
        llava: The model.
        connector: ``"linear"`` as in LLaVA, ``"mlp"`` as in LLaVA-1.5.
        seed: Of the fresh weights: torch's default for linear maps, as in LLaVA.

    Returns:
        The same model under a weight hash of its own.

    Source: Liu et al. 2023, "Visual Instruction Tuning", arXiv 2304.08485 (linear); Liu et al. 2024, "Improved
        Baselines with Visual Instruction Tuning", arXiv 2310.03744 (mlp).
    """
    if connector == "keep":
        return llava
    projector: Any = llava.projector
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    for linear in (projector.linear_1, projector.linear_2):
        fresh = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        linear.load_state_dict(fresh.state_dict())
    torch.random.set_rng_state(state)
    if connector == "linear":
        nn.init.eye_(projector.linear_2.weight)
        if projector.linear_2.bias is not None:
            nn.init.zeros_(projector.linear_2.bias)
    llava.config.projector_hidden_act = _ACTIVATION[connector]
    projector.act = ACT2FN[_ACTIVATION[connector]]
    return replace(llava, weight_hash=f"{llava.weight_hash}-{connector}@{seed}")
