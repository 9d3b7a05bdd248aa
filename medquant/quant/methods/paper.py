"""``paper``: the fixed-point quantizer of "U-Net Fixed-Point Quantization for Medical Image Segmentation" (arXiv 1908.01073).

Sign and magnitude ``Qi.f``: whole part truncated and clamped to i bits, fraction rounded to f bits, one format for all layers, the
sign not counted, nothing learned. The defaults are what the paper prints; every departure from it is an option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.autograd.function import once_differentiable

from medquant.config.schema import Section
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.graph import AvgPool, Convolution, Graph, Input, MaxPool, Operation, Upsample
from medquant.quant.methods.base import ActivationQuantizer, ActivationSite, Method, WeightQuantizer, WeightSite, joined, observed_bits
from medquant.quant.methods.uniform_start import draw_uniform, zero_biases
from medquant.quant.plan import QuantPlan

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork

_BLOCK = 2
"""Convolutions of a block in the paper's U-Net."""

_POWER_OF_TWO_BITS = 9
"""What a power of two that is bounded by float32 alone takes: its sign and an 8-bit exponent."""

_SCALE_EXPONENTS = range(-8, 9)


class PaperOptions(Section):
    """Options of ``paper``. Weights are Q(weight_integer_bits).(weight bits), activations Q(activation bits).(activation_fraction_bits)."""

    weight_integer_bits: int = Field(default=0, ge=0, le=8, description="i of the weights' Qi.f, beside f, the weight bits")
    activation_fraction_bits: int = Field(default=0, ge=0, le=8, description="f of the activations' Qi.f, beside i, the activation bits")
    quantizer: Literal["split", "power_of_two"] = Field(
        default="split",
        description="split: whole part and fraction, as printed; power_of_two: as released for EM, nearest power of two, clipped",
    )
    overflow: Literal["wrap", "saturate"] = Field(
        default="wrap", description="wrap: as printed, a fraction survives where the whole part is clamped; saturate: at 2^i - 2^-f"
    )
    integer_rounding: Literal["floor", "nearest"] = Field(
        default="floor", description="formats without fraction: cut off the fraction, as printed, or round to the nearest integer"
    )
    sign_counted: bool = Field(default=False, description="take the sign from the bits: one bit less of weights' f and activations' i")
    straight_through: Literal["identity", "clipped"] = Field(
        default="identity", description="gradient everywhere, as the paper has it, or only up to the ends of the format"
    )
    edges: Literal["float", "quantized"] = Field(
        default="float", description="weights of the first block and of the last layer; quantized: bits as of other methods"
    )
    init: Literal["uniform", "warm"] = Field(
        default="uniform", description="quantized weights at the start: U(-1, 1) with biases 0, as the paper has it, or the warm start's"
    )
    activation_scale: float | Literal["auto"] = Field(
        default=1.0, description="power of two that activations are multiplied by before, and divided by after; auto: of least error"
    )

    @field_validator("activation_scale", mode="before")
    @classmethod
    def _is_power_of_two(cls, value: object) -> object:
        number = value if isinstance(value, float | int) and not isinstance(value, bool) else 0.0
        # frexp's mantissa of a power of two is one half; of nothing else.
        if value != "auto" and math.frexp(number)[0] != 0.5:
            raise ValueError(f"activation_scale must be a power of two, or auto; found {value}")
        return value


@dataclass(frozen=True)
class FixedPointNumber:
    """The number format Qi.f, sign not counted.

    Args:
        integer_bits: i.
        fraction_bits: f.
        options: how values outside the format, and between its steps, are treated.
    """

    integer_bits: int
    fraction_bits: int
    options: PaperOptions

    @property
    def limit(self) -> float:
        """Where the format ends: 2^i, or the power-of-two quantizer's M."""
        if self.options.quantizer == "split":
            return 2.0**self.integer_bits
        return (2.0 ** (self.integer_bits - 1) if self.integer_bits else 0.0) + (1.0 - 2.0**-self.fraction_bits)

    @property
    def stored_bits(self) -> int:
        """Bits that hold every value, the sign and, where a fraction may round up into the next integer, one for that."""
        if self.options.quantizer == "power_of_two":
            return _POWER_OF_TWO_BITS
        carries = self.options.overflow == "wrap" and self.fraction_bits > 0
        return 1 + self.integer_bits + self.fraction_bits + carries

    def quantize(self, x: Tensor) -> Tensor:
        """``sign(x) * (clamp(floor|x|) + round((|x| - floor|x|) * 2^f) / 2^f)``, half to even; any shape."""
        if self.options.quantizer == "power_of_two":
            return torch.sign(x) * torch.exp2(torch.log2(x.abs()).round_()).clamp_(max=self.limit)
        whole, fraction = self._split(x.abs())
        if self.options.overflow == "wrap":
            return torch.sign(x) * whole.clamp_(max=2**self.integer_bits - 1).add_(fraction)
        return torch.sign(x) * whole.add_(fraction).clamp_(max=2.0**self.integer_bits - 2.0**-self.fraction_bits)

    def _split(self, magnitude: Tensor) -> tuple[Tensor, Tensor | float]:
        if self.fraction_bits == 0:
            return (magnitude.floor() if self.options.integer_rounding == "floor" else magnitude.round()), 0.0
        whole = magnitude.floor()
        step = 2.0**self.fraction_bits
        return whole, (magnitude - whole).mul_(step).round_().div_(step)


class _Quantize(torch.autograd.Function):
    """``number.quantize(x * scale) / scale``; the gradient passes everywhere, or only within the format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: FixedPointNumber, scale: float) -> Tensor:
        ctx.limit = number.limit / scale if number.options.straight_through == "clipped" else None
        if ctx.limit is not None:
            ctx.save_for_backward(x)
        return number.quantize(x) if scale == 1.0 else number.quantize(x * scale).div_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.limit is None:
            return grad, None, None
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= ctx.limit), None, None


def _quantize(x: Tensor, number: FixedPointNumber, scale: float = 1.0) -> Tensor:
    y: Tensor = _Quantize.apply(x, number, scale)  # type: ignore[no-untyped-call]
    return y


class PaperWeight(WeightQuantizer):
    """Weights in Qi.f, f the weight bits."""

    def __init__(self, site: WeightSite, options: PaperOptions) -> None:
        super().__init__(site)
        self.number = _weight_number(site.bits, options)

    def initialise(self, weight: Tensor) -> None:
        """U(-1, 1) in place where asked for: the paper's formats suit such weights, most of a float network's are below their step."""
        if self.number.options.init == "uniform":
            draw_uniform(weight, self.site.name)

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight."""
        return _quantize(weight, self.number)


class PaperActivation(ActivationQuantizer):
    """Activations in Qi.f, i the activation bits, after an optional multiplication by a power of two."""

    scale: Tensor

    def __init__(self, options: PaperOptions) -> None:
        super().__init__()
        self.options = options
        self._scale = 1.0 if options.activation_scale == "auto" else float(options.activation_scale)
        self.register_buffer("scale", torch.tensor(self._scale))

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Nothing to choose, but for the scale where it is ``auto``: the one of least squared error over the observed values."""
        if self.options.activation_scale != "auto":
            return
        number, values = _activation_number(observed_bits(samples), self.options), joined(samples)
        errors = [float((number.quantize(values * 2.0**e) / 2.0**e - values).square().sum()) for e in _SCALE_EXPONENTS]
        self._scale = 2.0 ** _SCALE_EXPONENTS[errors.index(min(errors))]
        self.scale.fill_(self._scale)

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """Quantize, rectified first where ``relu``."""
        return _quantize(torch.relu(x) if relu else x, _activation_number(bits, self.options), self._scale)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._scale = float(self.scale)


def _weight_number(bits: int, options: PaperOptions) -> FixedPointNumber:
    return FixedPointNumber(options.weight_integer_bits, bits - options.sign_counted, options)


def _activation_number(bits: int, options: PaperOptions) -> FixedPointNumber:
    return FixedPointNumber(bits - options.sign_counted, options.activation_fraction_bits, options)


class Paper(Method):
    """The quantizer of the 2019 paper, with batch norm in float."""

    name = "paper"
    summary = "Qi.f fixed point of the 2019 U-Net paper, batch norm in float; a simulation, for comparison"
    options_type = PaperOptions
    options: PaperOptions

    def __init__(self, options: Mapping[str, object] | None = None) -> None:
        super().__init__(options)
        if self.options.sign_counted:
            # The sign alone would leave every value zero.
            self.weight_bits = self.activation_bits = frozenset(range(2, 9))

    @property
    def exact(self) -> bool:
        """Batch norm and up-sampling are computed in float between the quantizers."""
        return False

    @property
    def keeps_batch_norm(self) -> bool:
        """Quantized is what batch norm writes."""
        return True

    def default_bits(self, site: Operation, graph: Graph, bits: tuple[int, int]) -> tuple[int, int]:
        """Float: the image, what linear up-sampling writes and, by default, the weights of the first block and the last layer."""
        weight, activation = bits
        if isinstance(site, Input) or (isinstance(site, Upsample) and site.mode == "linear"):
            return weight, FLOAT_BITS
        if self.options.edges == "float" and site.name in {*_first_block(graph), graph.convolutions[-1].name}:
            return FLOAT_BITS, activation
        return bits

    def stored(self, plan: QuantPlan) -> QuantPlan:
        """With signs, integer bits of weights and fraction bits of activations."""

        def width(bits: int | None, number: FixedPointNumber | None) -> int | None:
            return bits if number is None else number.stored_bits

        layers = []
        for layer in plan.layers:
            weight, activation = layer.weight_bits, layer.activation_bits
            of_weight = None if weight in (None, FLOAT_BITS) else _weight_number(int(weight or 0), self.options)
            of_activation = None if activation in (None, FLOAT_BITS) else _activation_number(int(activation or 0), self.options)
            layers.append(replace(layer, weight_bits=width(weight, of_weight), activation_bits=width(activation, of_activation)))
        return QuantPlan(tuple(layers))

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """One format for all."""
        return PaperWeight(site, self.options)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """One format for all."""
        return PaperActivation(self.options)

    def calibrated(self, network: QuantNetwork, batches: list[Tensor]) -> None:
        """Biases of layers whose weights start anew start from zero."""
        if self.options.init == "uniform":
            zero_biases(network)


def _first_block(graph: Graph) -> list[str]:
    """Names of the first convolution, and of the second where it works at the same resolution."""
    block: list[str] = []
    for operation in graph:
        if isinstance(operation, MaxPool | AvgPool | Upsample) or len(block) == _BLOCK:
            break
        if isinstance(operation, Convolution):
            changes_resolution = set(operation.geometry.stride) != {1}
            if not (block and changes_resolution):
                block.append(operation.name)
            if changes_resolution:
                break
    return block or [graph.convolutions[0].name]
