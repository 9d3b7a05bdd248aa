"""The program in torch's float convolutions: integers in float32, summed exactly below 2**24; wider layers in float64.

Sums are exact in any order, so torch may use whatever direct convolution is fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medquant.deploy.engines.torch_walk import TorchProgramEngine
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, TensorFormat
from medquant.quant.program import ConvolutionNode, IntegerProgram, accumulator_bound


class FloatTorchProgram(TorchProgramEngine):
    """Float32 convolutions of integers on the CPU, or float64 on a GPU, rounded back to the integers they are."""

    def __init__(self, program: IntegerProgram, device: torch.device | None = None) -> None:
        super().__init__(program)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._parameters: dict[str, tuple[Tensor, Tensor]] = {}

    def _prepare(self, node: ConvolutionNode) -> tuple[Tensor, Tensor]:
        wide = accumulator_bound(node, self.program.format_of(node.inputs[0])) >= FLOAT32_EXACT_LIMIT
        # cuDNN may pick Winograd or FFT algorithms, which are not exact in float32; in float64 their error stays far
        # below half a unit, and rounding the accumulators (in requantize and at the end) takes it out.
        dtype = torch.float64 if wide or self.device.type == "cuda" else torch.float32
        return torch.from_numpy(node.weight).to(self.device, dtype), torch.from_numpy(node.bias).to(self.device, dtype)

    def load(self, image: Tensor) -> Tensor:
        """The image as float32, channels last where it is 2D."""
        x = image.to(self.device, torch.float32)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def parameters(self, node: ConvolutionNode) -> tuple[Tensor, Tensor]:
        """Weight and bias in the type that is exact for this layer; made when a layer first asks, for not all may run here."""
        if node.name not in self._parameters:
            self._parameters[node.name] = self._prepare(node)
        return self._parameters[node.name]

    def _convolve(self, node: ConvolutionNode, x: Tensor) -> Tensor:
        result = super()._convolve(node, x)
        return result.round() if node.output is None and self.device.type == "cuda" else result

    def requantize(self, accumulators: Tensor, shift: Tensor, written: TensorFormat, relu: bool) -> Tensor:
        """One multiplication by a power of two (exact), one rounding half to even, saturation."""
        if self.device.type == "cuda":
            accumulators = accumulators.round()
        scale = torch.exp2(-shift.double()).to(self.device, accumulators.dtype)
        scale = scale.reshape(-1, *[1] * (accumulators.dim() - 2)) if shift.dim() else scale
        low, high = 0 if relu else -written.zero_point, written.highest - written.zero_point
        return (accumulators * scale).round_().clamp_(low, high).to(torch.float32)
