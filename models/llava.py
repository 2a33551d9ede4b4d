"""``Llava``: a LLaVA-1.5 model with the methods that a user calls, as ``load`` returns it."""

from dataclasses import dataclass

from models.adapter import Adapter


@dataclass(frozen=True, eq=False, repr=False)
class Llava(Adapter):
    """A LLaVA-1.5 stack: the Hugging Face model in ``eval()`` mode and its processor."""
