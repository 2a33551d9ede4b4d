"""How a conversation becomes tokens: template, longest length, and preprocessing of its pictures."""

from dataclasses import dataclass
from typing import Literal

Recipe = Literal["plain", "vicuna_v1"]
OnLong = Literal["cut", "refuse"]
Grouping = Literal["step", "length"]  # see `tuning.data.step_order`, which imports torch


@dataclass(frozen=True)
class PromptFormat:
    """How samples become tokens.

    Args:
        recipe: ``"plain"`` for stage 1, ``"vicuna_v1"`` for stage 2.
        max_length: Tokens of the longest sample, image tokens included.
        on_long: Whether longer samples are cut or left out.
        preprocess: Whether pictures are padded to a square (``"pad"``) or cropped as CLIP's processor does (``"hf"``).
    """

    recipe: Recipe = "vicuna_v1"
    max_length: int = 2048
    on_long: OnLong = "cut"
    preprocess: Literal["pad", "hf"] = "pad"
