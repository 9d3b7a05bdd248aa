"""The U-Net of the 2019 fixed-point paper, with the options that matter.

Four levels of two 3×3 convolutions, widths c, 2c, 4c, 4c, skips by concatenation, bilinear up-sampling, one 3×3 head.
Source: AskariHemmat et al., arXiv 1908.01073; with 64 channels and one output it has 4,837,249 parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.models.ternary_tanh import TernaryTanh

BlockOrder = Literal["conv_norm_act", "conv_act_norm"]
UpsampleKind = Literal["bilinear", "nearest", "transposed"]

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}


@dataclass(frozen=True)
class UNetOptions:
    """What a U-Net is made of.

    Args:
        in_channels: image channels.
        out_channels: 1 for a two-class problem (sign of the output), otherwise one for each class.
        channels: width of the first level; the paper's is 64.
        depth: number of resolution levels, the bottom included; the paper's is 4.
        block: order inside a block. ``conv_norm_act`` folds exactly into the convolution; ``conv_act_norm`` is the paper's.
        upsample: ``bilinear`` is the paper's; ``transposed`` is a 2×2 transposed convolution of stride 2.
        dropout: channel dropout after each convolution, in float training only; 0 is the paper's text.
        dimensions: 2 or 3.
        activation: ``relu``, or ``ternary_tanh`` as in the paper's Tanh networks; any other name is taken for ``relu``.

    Raises:
        ConfigError: an option is not one of these, or out of range.
    """

    in_channels: int = 1
    out_channels: int = 1
    channels: int = 64
    depth: int = 4
    block: BlockOrder = "conv_norm_act"
    upsample: UpsampleKind = "bilinear"
    dropout: float = 0.0
    dimensions: Literal[2, 3] = 2
    activation: str = "relu"

    def __post_init__(self) -> None:
        mistakes = [
            f"model.{name} must be {' or '.join(map(repr, allowed))}, found {getattr(self, name)!r}"
            for name, allowed in (("block", get_args(BlockOrder)), ("upsample", get_args(UpsampleKind)), ("dimensions", (2, 3)))
            if getattr(self, name) not in allowed
        ]
        for name, least in (("in_channels", 1), ("out_channels", 1), ("channels", 1), ("depth", 2)):
            if getattr(self, name) < least:
                mistakes.append(f"model.{name} must be at least {least}, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            mistakes.append(f"model.dropout must be at least 0 and below 1, found {self.dropout}")
        if mistakes:
            raise ConfigError(*mistakes)


class DoubleConv(nn.Module):
    """Two 3×3 convolutions, each with batch norm and a rectifier. Shape: (N, in, *S) → (N, out, *S)."""

    def __init__(self, in_channels: int, out_channels: int, options: UNetOptions) -> None:
        super().__init__()
        conv, norm, dropout = _CONV[options.dimensions], _NORM[options.dimensions], _DROPOUT[options.dimensions]
        self.norm_first = options.block == "conv_norm_act"
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.norm1 = norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.act: nn.Module = TernaryTanh() if options.activation == "ternary_tanh" else nn.ReLU(inplace=True)
        self.dropout = dropout(options.dropout) if options.dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions."""
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = conv(x)
            x = self.act(norm(x)) if self.norm_first else norm(self.act(x))
            x = self.dropout(x)
        return x


class Decoder(DoubleConv):
    """The block behind a skip connection, and the up-sampling (``up``) before it. ``forward`` takes the joined tensor."""

    def __init__(self, below: int, skip: int, out_channels: int, options: UNetOptions) -> None:
        super().__init__(below + skip, out_channels, options)
        self.up: nn.Module
        if options.upsample == "transposed":
            self.up = _CONV_TRANSPOSED[options.dimensions](below, below, 2, stride=2)
        elif options.upsample == "nearest":
            self.up = nn.Upsample(scale_factor=2, mode="nearest")
        else:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear" if options.dimensions == 2 else "trilinear", align_corners=False)


class UNet(nn.Module):
    """The paper's U-Net. Shape: (N, in_channels, *S) → (N, out_channels, *S); every axis of S a multiple of ``2**(depth-1)``."""

    def __init__(self, options: UNetOptions) -> None:
        super().__init__()
        self.options = options
        widths = [options.channels * 2**level for level in range(options.depth - 1)]
        widths.append(widths[-1])
        encoders = [DoubleConv(options.in_channels, widths[0], options)]
        encoders += [DoubleConv(a, b, options) for a, b in pairwise(widths)]
        decoders = [Decoder(below, width, width, options) for width, below in pairwise(widths)]
        # Named attributes, not lists: layer names are what users type in bit rules (enc1, bottom, dec3, ...).
        for level, encoder in enumerate(encoders[:-1], start=1):
            self.add_module(f"enc{level}", encoder)
        self.bottom = encoders[-1]
        for level in range(options.depth - 1, 0, -1):
            self.add_module(f"dec{level}", decoders[level - 1])
        self.pool = _POOL[options.dimensions](2)
        self.head = _CONV[options.dimensions](widths[0], options.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every voxel."""
        skips: list[Tensor] = []
        for level in range(1, self.options.depth):
            x = self.get_submodule(f"enc{level}")(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for level in range(self.options.depth - 1, 0, -1):
            decoder: nn.Module = self.get_submodule(f"dec{level}")
            x = decoder(torch.cat([decoder.get_submodule("up")(x), skips[level - 1]], dim=1))
        logits: Tensor = self.head(x)
        return logits

    @property
    def size_multiple(self) -> int:
        """Every spatial axis of an input must be a multiple of this."""
        return int(2 ** (self.options.depth - 1))
