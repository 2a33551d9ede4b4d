"""The plans that ``compare`` runs: full tuning, the middle band, and other plans of the same size."""

from collections.abc import Sequence

from tuning.plan.layers import anchor_band, layer_spec
from tuning.plan.plan import WHOLE, LayerPlan, Lisa, Lora

EXTRA_PLANS = ("LISA on the band",)  # run only if named
UNDER = " under the token plan"  # ends the name of a plan that trains and is scored under a token plan


def default_plans(
    n_layers: int, *, band: Sequence[int] | None = None, seed: int = 0, lora: Lora | None = None
) -> list[LayerPlan]:
    """No tuning, full tuning, the band, other sets of as many layers, LoRA, LISA, projector only.

    Args:
        n_layers: Blocks of the language model.
        band: The middle band; if None, layers 6-16 of 32 at the same relative depth.
        seed: Seed of the random layers.
        lora: Rank, alpha and dropout of the LoRA plans.

    Example:
        >>> [plan.name for plan in default_plans(32)][:4]
        ['start', 'full', 'middle band', 'complement']
    """
    middle = tuple(band) if band is not None else anchor_band(n_layers)
    size = len(middle)
    rest = tuple(layer for layer in range(n_layers) if layer not in middle)
    low_rank = lora or Lora()
    spec = layer_spec(middle, n_layers)
    plans = [
        LayerPlan("none", (), name="start"),
        LayerPlan("all", WHOLE, name="full"),
        LayerPlan(spec, name="middle band"),
        LayerPlan(layer_spec(rest, n_layers), name="complement"),
        LayerPlan(f"first:{size}", name="first"),
        LayerPlan(f"last:{size}", name="last"),
        LayerPlan(_evenly(size, n_layers), name="evenly spread"),
        LayerPlan(f"random:{size}@{seed}", name="random layers"),
        LayerPlan("all", method="lora", lora=low_rank, name="LoRA everywhere"),
        LayerPlan(spec, method="lora", lora=low_rank, name="LoRA on the band"),
        LayerPlan(spec, method="lisa", lisa=Lisa(active=min(2, size)), name="LISA on the band"),
        LayerPlan("none", ("projector",), name="projector only"),
    ]
    return [plan for plan in plans if plan.name != "complement" or rest]


def _evenly(size: int, n_layers: int) -> str:
    """A spec of ``size`` layers from 0 on, evenly spaced up to rounding."""
    if n_layers % size == 0:
        return f"every:{n_layers // size}"
    return layer_spec(tuple(round(index * n_layers / size) for index in range(size)), n_layers)
