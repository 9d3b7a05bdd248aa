"""The ternary tanh in the place of a rectifier: the 2019 paper's "Tanh" networks."""

from __future__ import annotations

import torch
from torch import Tensor

from medquant.quant.ternary_tanh import SLOPES, HoldsSlopes, apply_ternary_tanh


class TernaryTanh(HoldsSlopes):
    """``(tanh(beta (2x - 1)) + tanh(beta (2x + 1))) / 2``, any shape; training raises ``beta``, which is stored with the network."""

    beta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(SLOPES[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        y: Tensor = apply_ternary_tanh(x, self.beta)
        return y

    def slopes(self) -> list[Tensor]:
        """The one slope."""
        return [self.beta]
