"""Where and how the weights of a model are held: on one device, quantised, or spread over several."""

import hashlib
from typing import Literal, NamedTuple

import torch

from models.loading.quantised import Quantise, quantisation
from tasks.errors import UserError


class Placing(NamedTuple):
    """Where and how the weights are held."""

    device: torch.device
    attn: str
    quantize: Quantise | None
    device_map: Literal["auto"] | None

    def check(self) -> None:
        """Raise ``UserError`` if the two ways to save memory are combined, or one is unknown."""
        if self.device_map not in (None, "auto"):
            raise UserError(f"device-map must be auto, got {self.device_map!r}.")
        if self.quantize is not None:
            if self.device_map is not None:
                raise UserError(
                    "device-map must be left out with quantize, got both. Quantised weights are on one device."
                )
            quantisation(self.quantize, torch.float32)

    def identity(self, weight_hash: str) -> str:
        """The hash of the weights as they are held."""
        if self.quantize is None:
            return weight_hash
        return hashlib.sha256(f"{weight_hash} {self.quantize}".encode()).hexdigest()[:16]
