"""The plain convolutional U-Net of nnU-Net v2, from the arguments of its plans; parameters have nnU-Net's names.

Structure of ``PlainConvUNet`` in dynamic_network_architectures (Isensee et al., Nature Methods 2021), written anew: stages of
convolution, norm and leaky rectifier, the first of each stage strided; transposed convolutions, concatenation, stages going up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.models.brought_facts import NetworkFacts, spatial_axes, stride_product, whole_number

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MOST_STAGES = 10
_KEYS = (
    "dimensions",
    "in_channels",
    "out_channels",
    "features_per_stage",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "norm_eps",
    "negative_slope",
)


@dataclass(frozen=True)
class PlainOptions:
    """Arguments of a :class:`PlainConvUNet`; lists have one entry for each stage, going down, axes in the order of the image's."""

    dimensions: Literal[2, 3]
    in_channels: int
    out_channels: int
    features_per_stage: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    n_conv_per_stage: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    conv_bias: bool
    norm_eps: float
    negative_slope: float


def plain_options(arguments: Mapping[str, object]) -> PlainOptions:
    """Read and check arguments.

    Raises:
        ConfigError: one is missing, unknown or out of range.
    """
    unknown = sorted(set(arguments) ^ set(_KEYS))
    if unknown:
        raise ConfigError(f"model.arguments: a plain nnU-Net needs {', '.join(_KEYS)}; missing or unknown: {', '.join(unknown)}")
    axes = spatial_axes(arguments, "dimensions")
    features = _numbers(arguments, "features_per_stage", 4096)
    stages = len(features)
    if not 2 <= stages <= _MOST_STAGES:
        raise ConfigError(f"model.arguments: features_per_stage must have 2 to {_MOST_STAGES} stages; found {stages}")
    lists = {
        "kernel_sizes": _per_axis(arguments, "kernel_sizes", axes, 15),
        "strides": _per_axis(arguments, "strides", axes, 16),
        "n_conv_per_stage": _numbers(arguments, "n_conv_per_stage", 32),
        "n_conv_per_stage_decoder": _numbers(arguments, "n_conv_per_stage_decoder", 32),
    }
    for key, found in lists.items():
        expected = stages - 1 if key == "n_conv_per_stage_decoder" else stages
        if len(found) != expected:
            raise ConfigError(f"model.arguments: {key} must have {expected} entries for {stages} stages; found {len(found)}")
    if any(step != 1 for step in _lists_of(lists["strides"][0])):
        raise ConfigError("model.arguments: strides must begin with 1; the finest stage has the image's own size")
    if any(size % 2 == 0 for sizes in lists["kernel_sizes"] if isinstance(sizes, tuple) for size in sizes):
        raise ConfigError("model.arguments: kernel_sizes must be odd")
    epsilon, slope, bias = arguments["norm_eps"], arguments["negative_slope"], arguments["conv_bias"]
    if not isinstance(epsilon, float) or not 0 < epsilon < 1 or not isinstance(slope, float) or not 0 <= slope < 1:
        raise ConfigError(f"model.arguments: norm_eps and negative_slope must lie below 1; found {epsilon!r} and {slope!r}")
    if not isinstance(bias, bool):
        raise ConfigError(f"model.arguments: conv_bias must be true or false; found {bias!r}")
    return PlainOptions(
        axes, whole_number(arguments, "in_channels"), whole_number(arguments, "out_channels"), features,
        lists["kernel_sizes"], lists["strides"], lists["n_conv_per_stage"], lists["n_conv_per_stage_decoder"],  # type: ignore[arg-type]
        bias, epsilon, slope,
    )  # fmt: skip


def plain_conv_unet_facts(arguments: Mapping[str, object]) -> NetworkFacts:
    """What the network reads and writes.

    Raises:
        ConfigError: the arguments are not those of one.
    """
    options = plain_options(arguments)
    multiple = stride_product(options.strides, options.dimensions, "strides")
    return NetworkFacts(options.in_channels, options.out_channels, options.dimensions, multiple)


def build_plain_conv_unet(arguments: Mapping[str, object]) -> nn.Module:
    """The network of these arguments.

    Raises:
        ConfigError: the arguments are not those of one.
    """
    return PlainConvUNet(plain_options(arguments))


class _ConvNormAct(nn.Module):
    """Convolution, instance norm, leaky rectifier. Shape: (N, in, *S) → (N, out, *S / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], options: PlainOptions) -> None:
        super().__init__()
        padding = [(size - 1) // 2 for size in kernel]
        self.conv = _CONV[options.dimensions](inputs, outputs, tuple(kernel), tuple(stride), tuple(padding), bias=options.conv_bias)  # type: ignore[arg-type]
        self.norm = _NORM[options.dimensions](outputs, eps=options.norm_eps, affine=True)
        self.nonlin = nn.LeakyReLU(options.negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.nonlin(self.norm(self.conv(x)))
        return found


class _Stage(nn.Module):
    """Convolutions of one width; the first may be strided."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int, options: PlainOptions) -> None:
        super().__init__()
        ones = [1] * options.dimensions
        self.convs = nn.Sequential(
            _ConvNormAct(inputs, outputs, kernel, stride, options),
            *(_ConvNormAct(outputs, outputs, kernel, ones, options) for _ in range(count - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.convs(x)
        return found


class _Encoder(nn.Module):
    def __init__(self, options: PlainOptions) -> None:
        super().__init__()
        widths = (options.in_channels, *options.features_per_stage)
        stages = zip(widths, widths[1:], options.kernel_sizes, options.strides, options.n_conv_per_stage, strict=False)
        # Each stage stands in a list of its own, where nnU-Net may put a pooling before it.
        self.stages = nn.Sequential(*(nn.Sequential(_Stage(*stage, options)) for stage in stages))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The features of every stage, finest first."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class _Decoder(nn.Module):
    def __init__(self, options: PlainOptions) -> None:
        super().__init__()
        widths, ones = options.features_per_stage, [1] * options.dimensions
        transposed, stages = [], []
        for level in range(len(widths) - 2, -1, -1):
            stride = options.strides[level + 1]
            transposed.append(_TRANSPOSED[options.dimensions](widths[level + 1], widths[level], stride, stride, bias=options.conv_bias))  # type: ignore[arg-type]
            count = options.n_conv_per_stage_decoder[len(widths) - 2 - level]
            stages.append(_Stage(2 * widths[level], widths[level], options.kernel_sizes[level], ones, count, options))
        self.transpconvs, self.stages = nn.ModuleList(transposed), nn.ModuleList(stages)
        # The outputs of coarser levels served the training alone; the finest keeps its name among them.
        self.seg_layers = nn.ModuleDict({str(len(stages) - 1): _CONV[options.dimensions](widths[0], options.out_channels, 1)})

    def forward(self, skips: list[Tensor]) -> Tensor:
        x = skips[-1]
        for up, stage, skip in zip(self.transpconvs, self.stages, reversed(skips[:-1]), strict=True):
            x = stage(torch.cat([up(x), skip], dim=1))
        for layer in self.seg_layers.values():
            x = layer(x)
        return x


class PlainConvUNet(nn.Module):
    """nnU-Net's network. Shape: (N, in, *S) → (N, out, *S), every axis of S a multiple of the product of its strides."""

    def __init__(self, options: PlainOptions) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(options), _Decoder(options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every voxel."""
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


def _numbers(arguments: Mapping[str, object], key: str, most: int) -> tuple[int, ...]:
    value = arguments[key]
    if not isinstance(value, list | tuple):
        raise ConfigError(f"model.arguments: {key} must be a list; found {value!r}")
    return tuple(whole_number({key: item}, key, 1, most) for item in value)


def _lists_of(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple) else [value]


def _per_axis(arguments: Mapping[str, object], key: str, axes: int, most: int) -> tuple[tuple[int, ...], ...]:
    value = arguments[key]
    if not isinstance(value, list | tuple) or not all(isinstance(item, list | tuple) and len(item) == axes for item in value):
        raise ConfigError(f"model.arguments: {key} must hold {axes} numbers for each stage; found {value!r}")
    return tuple(tuple(whole_number({key: item}, key, 1, most) for item in each) for each in value)
