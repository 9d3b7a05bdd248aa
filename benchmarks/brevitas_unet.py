"""The benchmark's U-Net as a Brevitas user writes it: the same layers and the same bits, quantized by Brevitas.

Brevitas's fixed-point quantizers are the nearest to medquant's: power-of-two scales, one for each output channel of a weight and
one learned for each activation tensor. What it does not do here, in its favour: its biases stay float, and the tensors
that meet in a concatenation are not tied to one scale.
"""

from __future__ import annotations

import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Int8WeightPerChannelFixedPoint, Uint8ActPerTensorFixedPoint
from torch import Tensor, nn

from medquant.models.unet import UNetOptions
from medquant.quant.graph import Convolution, Graph

EDGE_BITS = 8
WEIGHT_BITS = 4
ACTIVATION_BITS = 6
# Brevitas takes its activation scales from percentiles of the first steps, and learns them afterwards. Its default is 300 steps.
ALWAYS = 10**9


def _conv(inputs: int, outputs: int, bits: int) -> nn.Module:
    layer: nn.Module = QuantConv2d(inputs, outputs, 3, padding=1, weight_quant=Int8WeightPerChannelFixedPoint, weight_bit_width=bits)
    return layer


class _Block(nn.Module):
    """Two quantized convolutions, each with an optional batch norm and a quantized rectifier."""

    def __init__(self, inputs: int, outputs: int, first_bits: int, collect_steps: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, first_bits)
        self.conv2 = _conv(outputs, outputs, WEIGHT_BITS)
        self.norm1: nn.Module = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.norm2: nn.Module = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()
        self.act1, self.act2 = (
            QuantReLU(act_quant=Uint8ActPerTensorFixedPoint, bit_width=ACTIVATION_BITS, collect_stats_steps=collect_steps) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))  # type: ignore[no-any-return]


class _Up(nn.Module):
    """Bilinear up-sampling, quantized."""

    def __init__(self, collect_steps: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.act = QuantIdentity(act_quant=Uint8ActPerTensorFixedPoint, bit_width=ACTIVATION_BITS, collect_stats_steps=collect_steps)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.up(x))  # type: ignore[no-any-return]


class BrevitasUNet(nn.Module):
    """Shape: (N, in_channels, H, W) → (N, out_channels, H, W).

    Args:
        options: as of :class:`medquant.models.unet.UNet`; two dimensions, bilinear up-sampling, no dropout.
        collect_steps: training steps that collect activation percentiles before the scales are learned.
        batch_norm: keep batch norm behind each convolution; otherwise it is taken as folded, as medquant does.
    """

    def __init__(self, options: UNetOptions, collect_steps: int, batch_norm: bool) -> None:
        super().__init__()
        self.depth = options.depth
        widths = [options.channels * 2**level for level in range(options.depth - 1)]
        widths.append(widths[-1])
        self.image = QuantIdentity(act_quant=Int8ActPerTensorFixedPoint, bit_width=EDGE_BITS, collect_stats_steps=collect_steps)
        self.enc1 = _Block(options.in_channels, widths[0], EDGE_BITS, collect_steps, batch_norm)
        for level in range(2, options.depth):
            block = _Block(widths[level - 2], widths[level - 1], WEIGHT_BITS, collect_steps, batch_norm)
            self.add_module(f"enc{level}", block)
        self.bottom = _Block(widths[-2], widths[-1], WEIGHT_BITS, collect_steps, batch_norm)
        for level in range(options.depth - 1, 0, -1):
            width, below = widths[level - 1], widths[level]
            self.add_module(f"up{level}", _Up(collect_steps))
            self.add_module(f"dec{level}", _Block(below + width, width, WEIGHT_BITS, collect_steps, batch_norm))
        self.pool = nn.MaxPool2d(2)
        self.head = _conv(widths[0], options.out_channels, EDGE_BITS)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of every voxel."""
        x = self.image(x)
        skips: list[Tensor] = []
        for level in range(1, self.depth):
            x = self.get_submodule(f"enc{level}")(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for level in range(self.depth - 1, 0, -1):
            up = self.get_submodule(f"up{level}")(x)
            x = self.get_submodule(f"dec{level}")(torch.cat([up, skips[level - 1]], dim=1))
        return self.head(x)  # type: ignore[no-any-return]

    def load_folded(self, graph: Graph) -> None:
        """Start from the same folded weights as medquant's network, so that both see activations of the same size."""
        with torch.no_grad():
            for operation in graph:
                if isinstance(operation, Convolution):
                    layer = self.get_submodule(operation.name)
                    layer.weight.copy_(operation.weight)  # type: ignore[operator]
                    if operation.bias is not None:
                        layer.bias.copy_(operation.bias)  # type: ignore[operator]
