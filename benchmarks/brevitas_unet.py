"""The benchmark's U-Net as a Brevitas user writes it: the same layers and the same bits, quantized by Brevitas.

Brevitas's fixed-point quantizers are the nearest to medquant's: power-of-two scales, one for each output channel of a weight and
one learned for each activation tensor. Two ways to write the network are measured. The plain one is the cheaper: biases stay
float, and tensors that meet in a concatenation are not tied to one scale, so it is no integer program. The integer one passes
quantized tensors along, rounds the biases to the accumulators' grid and joins by one shared quantizer, as medquant does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU
from brevitas.quant.fixed_point import Int8ActPerTensorFixedPoint, Int8WeightPerChannelFixedPoint, Uint8ActPerTensorFixedPoint
from brevitas.quant.scaled_int import Int32Bias
from torch import Tensor, nn

from medquant.models.unet import UNetOptions
from medquant.quant.graph import Convolution, Graph

EDGE_BITS = 8
WEIGHT_BITS = 4
ACTIVATION_BITS = 6
# Brevitas takes its activation scales from percentiles of the first steps, and learns them afterwards. Its default is 300 steps.
ALWAYS = 10**9


@dataclass(frozen=True)
class BrevitasOptions:
    """How the network is written.

    Args:
        collect_steps: training steps that collect activation percentiles before the scales are learned.
        batch_norm: keep batch norm behind each convolution; otherwise it is taken as folded, as medquant does.
        integer: pass quantized tensors along, quantize biases, tie the scales of what is concatenated.
    """

    collect_steps: int
    batch_norm: bool = False
    integer: bool = False


def _conv(inputs: int, outputs: int, bits: int, how: BrevitasOptions) -> nn.Module:
    layer: nn.Module = QuantConv2d(
        inputs,
        outputs,
        3,
        padding=1,
        weight_quant=Int8WeightPerChannelFixedPoint,
        weight_bit_width=bits,
        bias_quant=Int32Bias if how.integer else None,
    )
    return layer


def _activation(kind: type[nn.Module], quantizer: type, bits: int, how: BrevitasOptions) -> nn.Module:
    return kind(act_quant=quantizer, bit_width=bits, collect_stats_steps=how.collect_steps, return_quant_tensor=how.integer)


class _Block(nn.Module):
    """Two quantized convolutions, each with an optional batch norm and a quantized rectifier."""

    def __init__(self, inputs: int, outputs: int, how: BrevitasOptions, first_bits: int = WEIGHT_BITS) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, first_bits, how)
        self.conv2 = _conv(outputs, outputs, WEIGHT_BITS, how)
        self.norm1: nn.Module = nn.BatchNorm2d(outputs) if how.batch_norm else nn.Identity()
        self.norm2: nn.Module = nn.BatchNorm2d(outputs) if how.batch_norm else nn.Identity()
        self.act1 = _activation(QuantReLU, Uint8ActPerTensorFixedPoint, ACTIVATION_BITS, how)
        self.act2 = _activation(QuantReLU, Uint8ActPerTensorFixedPoint, ACTIVATION_BITS, how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))  # type: ignore[no-any-return]


class _Join(nn.Module):
    """Up-sample, quantize and concatenate with the skip connection."""

    def __init__(self, how: BrevitasOptions) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.act = _activation(QuantIdentity, Uint8ActPerTensorFixedPoint, ACTIVATION_BITS, how)
        self.integer = how.integer

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.integer:
            # Brevitas concatenates quantized tensors of one scale only: the same quantizer writes both.
            return torch.cat([self.act(self.up(x.value)), self.act(skip)], dim=1)  # type: ignore[attr-defined]
        return torch.cat([self.act(self.up(x)), skip], dim=1)


class BrevitasUNet(nn.Module):
    """Shape: (N, in_channels, H, W) → (N, out_channels, H, W).

    Args:
        options: as of :class:`medquant.models.unet.UNet`; two dimensions, bilinear up-sampling, no dropout.
        how: the way it is written in Brevitas.
    """

    def __init__(self, options: UNetOptions, how: BrevitasOptions) -> None:
        super().__init__()
        self.depth = options.depth
        widths = [options.channels * 2**level for level in range(options.depth - 1)]
        widths.append(widths[-1])
        self.image = _activation(QuantIdentity, Int8ActPerTensorFixedPoint, EDGE_BITS, how)
        self.enc1 = _Block(options.in_channels, widths[0], how, EDGE_BITS)
        for level in range(2, options.depth):
            self.add_module(f"enc{level}", _Block(widths[level - 2], widths[level - 1], how))
        self.bottom = _Block(widths[-2], widths[-1], how)
        for level in range(options.depth - 1, 0, -1):
            width, below = widths[level - 1], widths[level]
            self.add_module(f"join{level}", _Join(how))
            self.add_module(f"dec{level}", _Block(below + width, width, how))
        self.pool = nn.MaxPool2d(2)
        self.head = _conv(widths[0], options.out_channels, EDGE_BITS, how)

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
            joined = self.get_submodule(f"join{level}")(x, skips[level - 1])
            x = self.get_submodule(f"dec{level}")(joined)
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
