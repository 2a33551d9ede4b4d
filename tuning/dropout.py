"""Dropout that costs little on a CPU: sixteen random bits for each value, where torch draws a whole random number.

LoRA drops inputs of every map it sits on: on a CPU torch's own draws took longer than some of the products between.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16
_FEWEST = 128  # of the steps: rounding moves a share by 0.4 % of itself at most


class BitDropout(nn.Module):
    """``nn.Dropout`` whose share on a CPU is rounded to a multiple of 2^-16; what is kept is divided by the share kept.

    Draws come from torch's default generator, so a seed or a restored state gives the same ones. On other devices, and
    for shares too small for sixteen bits, it is torch's own.

    Source: Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15.
    """

    def __init__(self, p: float) -> None:
        """Takes the share of values to drop, in [0, 1)."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with some values set to 0 and the others scaled up, while training; ``x`` itself otherwise."""
        cut = round(self.p * _STEPS)
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or not _FEWEST <= cut <= _STEPS - _FEWEST:
            return F.dropout(x, self.p)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()] >= cut - _STEPS // 2
        return x * kept.view(x.shape).to(x.dtype).mul_(_STEPS / (_STEPS - cut))

    def extra_repr(self) -> str:
        """The share, as ``print(model)`` shows it."""
        return f"p={self.p}"
