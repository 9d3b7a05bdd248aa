"""``reference``: the program in 64-bit integers, node by node as written. Slow, and right by inspection."""

from __future__ import annotations

import torch
from torch import Tensor

from medquant.deploy.engines.base import EngineInfo, TorchProgramEngine
from medquant.quant.formats import TensorFormat
from medquant.quant.program import ConvolutionNode


class ReferenceEngine(TorchProgramEngine):
    """Integers only: there is no float anywhere between the quantized image and the mask."""

    info = EngineInfo("reference", "int64, node by node; the definition the others are held to", exact=True, priority=0)

    def load(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image

    def parameters(self, node: ConvolutionNode) -> tuple[Tensor, Tensor]:
        """Weight and bias as they are stored."""
        return torch.from_numpy(node.weight), torch.from_numpy(node.bias)

    def requantize(self, accumulators: Tensor, shift: Tensor, written: TensorFormat, relu: bool) -> Tensor:
        """Shift right with rounding half to even, or left where the shift is negative; then saturate."""
        per_channel = shift.reshape(-1, *[1] * (accumulators.dim() - 2)) if shift.dim() else shift
        right, left = per_channel.clamp_min(0), (-per_channel).clamp_min(0)
        # Adding half a step, less one unit unless the kept part is odd, and flooring rounds ties to even.
        half = torch.where(right > 0, torch.ones_like(right) << (right - 1).clamp_min(0), torch.zeros_like(right))
        odd = (accumulators >> right) & 1
        nudged = accumulators + torch.where(right > 0, half - 1 + odd, torch.zeros_like(odd))
        rounded = (nudged >> right) << left
        return rounded.clamp(0 if relu else -written.zero_point, written.highest - written.zero_point)
