"""``fixed_point``: learned power-of-two steps, one for each output channel of a weight and one for each activation group.

Started from the exponent of least squared error, then learned through their logarithm with LSQ's gradient (Esser et al., 2020;
for power-of-two steps, Vandersteegen et al., 2021). Everything it produces is an exact integer program.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from medquant.config.schema import Section
from medquant.quant.calibration import search_activation_format, search_weight_exponents
from medquant.quant.fake_quantize import fake_quantize_activation, fake_quantize_weight, quantize_weight
from medquant.quant.formats import TensorFormat
from medquant.quant.methods.base import (
    ActivationQuantizer,
    ActivationSite,
    Controller,
    IntegerActivationQuantizer,
    IntegerWeightQuantizer,
    Method,
    WeightQuantizer,
    WeightSite,
)
from medquant.quant.methods.late_training import LateTraining


class FixedPointWeight(IntegerWeightQuantizer):
    """Two's complement integers (one bit: the sign) times ``2**round(log2_step[c])``."""

    def __init__(self, site: WeightSite) -> None:
        super().__init__(site)
        self.log2_step = nn.Parameter(torch.zeros(self.per_channel_shape()))

    def initialise(self, weight: Tensor) -> None:
        """Exponents of least squared error."""
        with torch.no_grad():
            self.log2_step.copy_(-search_weight_exponents(weight, self.channel_axis, self.bits))

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight as real values."""
        return fake_quantize_weight(weight, self.log2_step, self.bits)

    def exponents(self) -> Tensor:
        """``-round(log2_step)``."""
        return -torch.round(self.log2_step.detach()).long()

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integers and exponents, as in :class:`WeightQuantizer`."""
        step = torch.exp2(torch.round(self.log2_step.detach()))
        return quantize_weight(weight.detach(), step, self.bits).long(), self.exponents()


class FixedPointActivation(IntegerActivationQuantizer):
    """Unsigned integers with a zero point that is fixed at calibration, times ``2**round(log2_step)``."""

    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.log2_step = nn.Parameter(torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int64))
        self._zero_point = 0  # the buffer's value without a device round trip in every forward pass

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Step (and zero point, where signed) of least squared error over the observed values."""
        self.choose(*search_activation_format(samples, signed))

    def choose(self, exponent: int, zero_point: int) -> None:
        """Take this step, ``2**-exponent``, and this zero point."""
        with torch.no_grad():
            self.log2_step.fill_(float(-exponent))
            self.zero_point.fill_(zero_point)
        self._zero_point = zero_point

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """Fake-quantize; with ``relu`` the lowest value is real zero."""
        low = 0 if relu else -self._zero_point
        return fake_quantize_activation(x, self.log2_step, 2.0**-exponent, low, 2**bits - 1 - self._zero_point)

    def log2_step_value(self) -> Tensor:
        """The learned logarithm of the step."""
        return self.log2_step

    def format(self, bits: int, exponent: int) -> TensorFormat:
        """Width, zero point and exponent of a tensor of this group."""
        return TensorFormat(bits, self._zero_point, exponent)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._zero_point = int(self.zero_point)


class FixedPointOptions(Section):
    """Options of ``fixed_point``."""

    freeze_above: float = Field(
        default=0.0, ge=0, lt=1, description="share of steps with an oscillation above which a weight is frozen; 0: no freezing"
    )
    average_from: float = Field(
        default=1.0, ge=0, le=1, description="share of quantized training after which latent weights are averaged; 1: no averaging"
    )


class FixedPoint(Method):
    """Learned power-of-two steps."""

    options_type = FixedPointOptions
    options: FixedPointOptions

    name = "fixed_point"
    summary = "learned power-of-two steps, per output channel for weights, per tensor for activations; exact integers"

    def shared_step_scale(self, processes: int) -> float:
        """The gradient of an activation's step is divided by the root of its number of values."""
        return 1.0 / math.sqrt(processes)

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """One exponent for each output channel."""
        return FixedPointWeight(site)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """One exponent and one zero point."""
        return FixedPointActivation()

    def controller(self) -> Controller:
        """Freezing and averaging, where asked for."""
        if self.options.freeze_above == 0 and self.options.average_from == 1:
            return Controller()
        return LateTraining(self.options.freeze_above, self.options.average_from)
