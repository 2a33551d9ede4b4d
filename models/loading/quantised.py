"""Weights in 4 or 8 bits, by bitsandbytes, for machines with little memory: the language model's blocks alone."""

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from tasks.errors import UserError

Quantise = Literal["4bit", "8bit"]
# Vision tower, projector and head keep their type: they are small, and the head decides which word is the most likely.
# Versions of transformers compare these with the start, the end or a part of a module's name.
_PLAIN = [
    "lm_head",
    *(f"{start}{part}" for start in ("", "model.") for part in ("vision_tower", "multi_modal_projector")),
]


def quantisation(kind: str, dtype: torch.dtype) -> Any:
    """The settings for transformers; products run in ``dtype``, 4-bit weights are of type nf4.

    Raises:
        UserError: If the kind is unknown or bitsandbytes is missing.

    Source: Dettmers et al. 2022, "LLM.int8()", arXiv 2208.07339; Dettmers et al. 2023, "QLoRA", arXiv 2305.14314.
    """
    from transformers import BitsAndBytesConfig

    if kind not in get_args(Quantise):
        raise UserError(f"quantize must be 4bit or 8bit, got {kind!r}.")
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantize must be left out without the package bitsandbytes, got {kind}. Run: pip install bitsandbytes"
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_PLAIN)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=_PLAIN
    )


def quantised_as(model: Any) -> Quantise | None:
    """How the weights of a model are stored; None if they are floating-point numbers."""
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return None
    return "4bit" if settings.load_in_4bit else "8bit"
