"""A layer plan: which parts of the model train. ``resolve(plan, llava)`` finds their parameters.

A layer spec (``tuning.plan.layers``) selects blocks of the language model. Other parts have names: ``projector``,
``vision`` (or ``vision:20``: the tower from block 20 on), ``embeddings``, ``final_norm``, ``lm_head``. Parts that LLaVA
computes but does not use (the vision tower's last block) never train.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from records.options import named
from tasks.errors import UserError

Method = Literal["full", "lora", "lisa"]
METHODS: tuple[Method, ...] = get_args(Method)
COMPONENTS = ("projector", "vision", "embeddings", "final_norm", "lm_head")
# The parts that LLaVA-1.5 trains in stage 2 besides the blocks.
WHOLE = ("projector", "embeddings", "final_norm", "lm_head")


@dataclass(frozen=True)
class Lora:
    """LoRA factors on every linear layer of the plan's blocks; the defaults are from LLaVA-1.5's LoRA recipe.

    Source: Hu et al. 2021, "LoRA", arXiv 2106.09685.

    Example:
        >>> Lora(rank=8, alpha=16)
        Lora(rank=8, alpha=16, dropout=0.05)
    """

    rank: Annotated[int, named("lora-rank")] = 128
    """Rank of LoRA's factors."""
    alpha: Annotated[int, named("lora-alpha")] = 256
    """LoRA's update is scaled by alpha / rank."""
    dropout: Annotated[float, named("lora-dropout")] = 0.05
    """Dropout on the factors' input during training."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "lora must have rank >= 1, alpha >= 1 and dropout in [0, 1), got "
                f"{self.rank}, {self.alpha}, {self.dropout}. LLaVA-1.5 uses 128, 256 and 0.05."
            )


@dataclass(frozen=True)
class Lisa:
    """LISA: full weights in a few blocks at a time, drawn at random from the plan's layers.

    Source: Pan et al. 2024, "LISA: Layerwise Importance Sampling", arXiv 2403.17919.

    Example:
        >>> Lisa(active=1)
        Lisa(active=1, every=20)
    """

    active: Annotated[int, named("lisa-active")] = 2
    """Blocks that train at the same time."""
    every: Annotated[int, named("lisa-every")] = 20
    """Optimizer steps between draws."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.active < 1 or self.every < 1:
            raise UserError(f"lisa must have active >= 1 and every >= 1, got {self.active} and {self.every}.")


@dataclass(frozen=True)
class LayerPlan:
    """The parts of the model that train, and how.

    Args:
        layers: Blocks of the language model, as a layer spec.
        train: Other parts; ``vision:20`` for the tower from block 20 on.
        method: ``"full"`` weights of the blocks, ``"lora"`` factors on them, or ``"lisa"``. Other parts train in full.
        name: Name in tables; if empty, layers and parts.
        token_plan: In which layers image tokens are computed, in training and in scoring (``models.token_plans.plan``).

    Example:
        >>> LayerPlan("6-16", ("projector",)).label
        '6-16+projector'
        >>> LayerPlan("all", method="lora", lora=Lora(rank=32, alpha=64)).label
        'all+projector (lora)'
    """

    layers: str = "all"
    train: tuple[str, ...] = ("projector",)
    method: Method = "full"
    lora: Lora = field(default_factory=Lora)
    lisa: Lisa = field(default_factory=Lisa)
    name: str = ""
    token_plan: str = "all"

    @property
    def label(self) -> str:
        """The name in tables."""
        parts = [self.layers, *self.train] if self.layers != "none" else list(self.train)
        more = [text for text, default in ((self.method, "full"), (self.token_plan, "all")) if text != default]
        return self.name or "+".join(parts) + (f" ({', '.join(more)})" if more else "")

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return asdict(self)
