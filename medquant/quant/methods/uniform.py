"""``uniform``: post-training quantization. Ranges are measured on training images, nothing is learned.

Weights are symmetric, one step for each output channel; activations are affine, one step for each tensor (Krishnamoorthi, arXiv
1806.08342; Nagel et al., arXiv 2106.08295). With power-of-two steps, the default, the result is an exact integer program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from medquant.config.schema import Section
from medquant.quant.bias_correction import correct_biases
from medquant.quant.equalize import equalize_layers
from medquant.quant.fake_quantize import fake_quantize_activation
from medquant.quant.methods.base import ActivationQuantizer, ActivationSite, Method, WeightQuantizer, WeightSite, observed_bits
from medquant.quant.methods.fixed_point import FixedPointActivation, FixedPointWeight
from medquant.quant.methods.learned_step import LearnedStepOptions, LearnedStepWeight
from medquant.quant.ranges import (
    RangeKind,
    activation_span,
    holding_activation_format,
    holding_exponents,
    real_activation_format,
    real_weight_steps,
    weight_magnitudes,
)

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork


class UniformOptions(Section):
    """Options of ``uniform``."""

    range: RangeKind = Field(
        default="squared_error", description="values a step holds: all, a percentile, or the best trade by squared error"
    )
    percentile: float = Field(default=99.9, gt=50, le=100, description="share of values that range=percentile holds, in percent")
    scale: Literal["power_of_two", "real"] = Field(
        default="power_of_two", description="power_of_two: an exact integer program; real: simulated"
    )
    bias_correction: bool = Field(default=True, description="take the shift of each channel's mean out of its bias, layer after layer")
    equalization: bool = Field(default=False, description="even out channel ranges across convolution, rectifier, convolution first")


class UniformWeight(FixedPointWeight):
    """Integers times powers of two that are chosen once."""

    def __init__(self, site: WeightSite, options: UniformOptions) -> None:
        super().__init__(site)
        self.options = options
        self.log2_step.requires_grad_(False)

    def initialise(self, weight: Tensor) -> None:
        """Exponents that hold the range; one bit, and ``range=squared_error``: those of least squared error."""
        options = self.options
        if self.bits == 1 or options.range == "squared_error":
            super().initialise(weight)
            return
        magnitudes = weight_magnitudes(weight, self.channel_axis, options.range, options.percentile)
        with torch.no_grad():
            self.log2_step.copy_(-holding_exponents(magnitudes, self.bits))


class UniformRealWeight(LearnedStepWeight):
    """Integers times real steps that are chosen once."""

    def __init__(self, site: WeightSite, options: UniformOptions) -> None:
        super().__init__(site, LearnedStepOptions(per_channel=True))
        self.uniform = options
        self.step.requires_grad_(False)

    def initialise(self, weight: Tensor) -> None:
        """Steps that hold the range, or those of least squared error."""
        steps = real_weight_steps(weight, self.channel_axis, self.bits, self.uniform.range, self.uniform.percentile)
        with torch.no_grad():
            self.step.copy_(steps)


class UniformActivation(FixedPointActivation):
    """Unsigned integers with a zero point, times a power of two that is chosen once."""

    def __init__(self, options: UniformOptions) -> None:
        super().__init__()
        self.options = options
        self.log2_step.requires_grad_(False)

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Step and zero point that hold the range, or those of least squared error."""
        options = self.options
        if options.range == "squared_error":
            super().initialise(samples, signed)
            return
        span = activation_span(samples.values(), signed, options.range, options.percentile)
        self.choose(*holding_activation_format(span, observed_bits(samples)))


class UniformRealActivation(ActivationQuantizer):
    """Unsigned integers with a zero point, times a real step that is chosen once."""

    step: Tensor
    zero_point: Tensor

    def __init__(self, options: UniformOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("step", torch.ones((), dtype=torch.float64))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int64))

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Step and zero point of the range."""
        step, zero_point = real_activation_format(samples, signed, self.options.range, self.options.percentile)
        self.step.fill_(step)
        self.zero_point.fill_(zero_point)

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """Fake-quantize; with ``relu`` the lowest value is real zero."""
        zero_point = int(self.zero_point)
        return fake_quantize_activation(x, self.step, float(self.step), 0 if relu else -zero_point, 2**bits - 1 - zero_point)


class Uniform(Method):
    """Post-training quantization."""

    name = "uniform"
    summary = "post-training: ranges measured on training images, nothing is learned; exact integers with scale=power_of_two"
    options_type = UniformOptions
    options: UniformOptions
    learns = False

    @property
    def exact(self) -> bool:
        """Only powers of two make an integer program."""
        return self.options.scale == "power_of_two"

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """One step for each output channel."""
        return UniformWeight(site, self.options) if self.exact else UniformRealWeight(site, self.options)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """One step and one zero point."""
        return UniformActivation(self.options) if self.exact else UniformRealActivation(self.options)

    def before_calibration(self, network: QuantNetwork) -> None:
        """Equalize the weights, where asked for."""
        if self.options.equalization:
            equalize_layers(network)

    def calibrated(self, network: QuantNetwork, batches: list[Tensor]) -> None:
        """Correct the biases, unless told not to."""
        if self.options.bias_correction:
            correct_biases(network, batches)
