"""A layer plan: which parameters train, by name. ``resolve(plan, llava)`` turns the words of a plan into parameters.

Blocks of the language model are named by a layer spec (``tuning.plan.layers``), everything else by name:
``projector``, ``vision`` (or ``vision:20``: the tower from block 20 on), ``embeddings``, ``final_norm``, ``lm_head``.
What the model computes but never uses (the tower's last block, since LLaVA reads layer -2) is never claimed as trained.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from tasks.errors import UserError

Method = Literal["full", "lora", "lisa"]
METHODS: tuple[Method, ...] = get_args(Method)
COMPONENTS = ("projector", "vision", "embeddings", "final_norm", "lm_head")
# What LLaVA-1.5 trains in stage 2 besides the blocks.
WHOLE = ("projector", "embeddings", "final_norm", "lm_head")


@dataclass(frozen=True)
class Lora:
    """Low-rank factors on every linear map of the plan's blocks.

    Args:
        rank: Width between the two factors.
        alpha: The update is scaled by alpha / rank.
        dropout: On the factors' input, while training.

    Source: Hu et al. 2021, "LoRA", arXiv 2106.09685; rank, alpha and dropout as in LLaVA-1.5's LoRA recipe.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05

    def __post_init__(self) -> None:
        """Refuses what cannot be."""
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                "lora must have rank >= 1, alpha >= 1 and dropout in [0, 1), got "
                f"{self.rank}, {self.alpha}, {self.dropout}. LLaVA-1.5 uses 128, 256 and 0.05."
            )


@dataclass(frozen=True)
class Lisa:
    """Full weights in a few blocks at a time, drawn anew from the plan's layers.

    Args:
        active: How many blocks train at once.
        every: Optimizer steps until others are drawn.

    Source: Pan et al. 2024, "LISA: Layerwise Importance Sampling", arXiv 2403.17919.
    """

    active: int = 2
    every: int = 20

    def __post_init__(self) -> None:
        """Refuses what cannot be."""
        if self.active < 1 or self.every < 1:
            raise UserError(f"lisa must have active >= 1 and every >= 1, got {self.active} and {self.every}.")


@dataclass(frozen=True)
class LayerPlan:
    """What trains, in words.

    Args:
        layers: A layer spec; blocks of the language model.
        train: Component switches; ``vision:20`` for the tower from block 20 on.
        method: ``"full"`` weights of the blocks, ``"lora"`` factors on them, or ``"lisa"``. Components train in full.
        name: For tables; the plan in words where it is empty.
    """

    layers: str = "all"
    train: tuple[str, ...] = ("projector",)
    method: Method = "full"
    lora: Lora = field(default_factory=Lora)
    lisa: Lisa = field(default_factory=Lisa)
    name: str = ""

    @property
    def label(self) -> str:
        """How tables call it."""
        parts = [self.layers, *self.train] if self.layers != "none" else list(self.train)
        return self.name or "+".join(parts) + ("" if self.method == "full" else f" ({self.method})")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON keeps."""
        described = asdict(self)
        described["train"] = list(self.train)
        return described

    @staticmethod
    def from_dict(described: Mapping[str, Any]) -> "LayerPlan":
        """The plan that ``to_dict`` described."""
        own = dict(described)
        return LayerPlan(
            **{
                **own,
                "train": tuple(own.get("train", ())),
                "lora": Lora(**own.get("lora", {})),
                "lisa": Lisa(**own.get("lisa", {})),
            }
        )
