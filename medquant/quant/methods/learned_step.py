"""``learned_step``: LSQ (Esser et al., 2020) and LSQ+ (Bhalgat et al., 2020), steps that are free real numbers.

``y = s * clip(round(x / s), -Q_N, Q_P)``; LSQ+ adds a learned offset to activations. The steps are real, so the network is a
simulation with float scales and no exact integer program; it is here to compare with.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medquant.config.schema import Section
from medquant.quant.formats import weight_range
from medquant.quant.methods.base import ActivationQuantizer, ActivationSite, Method, WeightQuantizer, WeightSite, observed_bits

_SMALLEST_STEP = 2.0**-24
"""A step never falls below this: at zero it could not be divided by, and below zero every sign would turn."""

_SIGN_REACH = 2.5


class LearnedStepOptions(Section):
    """Options of ``learned_step``."""

    variant: Literal["lsq", "lsq_plus"] = Field(default="lsq", description="lsq: as of 2020; lsq_plus: learned offset, start from 3 sigma")
    per_channel: bool = Field(default=False, description="a step for each output channel of a weight; the papers have one for each layer")


class _LearnedStep(torch.autograd.Function):
    """``s * clip(round((x - beta) / s), low, high) + beta`` with the gradients of LSQ+ (equations 6 to 8); LSQ for beta = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, offset: Tensor | None, low: int, high: int) -> Tensor:
        scaled = (x if offset is None else x - offset).div(step)
        ctx.save_for_backward(scaled, step)
        ctx.limits, ctx.has_offset = (low, high), offset is not None
        y = scaled.round().clamp_(low, high).mul_(step)
        return (y if offset is None else y + offset).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        scaled, step = ctx.saved_tensors
        low, high = ctx.limits
        inside = (scaled >= low) & (scaled <= high)
        grad_x = grad * inside
        grad_step = grad_offset = None
        reduced = [axis for axis in range(grad.dim()) if step.dim() == 0 or step.shape[axis] == 1]
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, scaled.round() - scaled, scaled.clamp(low, high))
            scale = 1.0 / math.sqrt(grad.numel() / step.numel() * max(high, 1))
            grad_step = (slope * grad).float().sum(dim=reduced, keepdim=step.dim() > 0) * scale
        if ctx.has_offset and ctx.needs_input_grad[2]:
            # The offset passes outside the range only; scaled like the step, or it would learn orders of magnitude faster.
            scale = 1.0 / math.sqrt(grad.numel() * max(high, 1))
            grad_offset = (grad * ~inside).float().sum() * scale
        return grad_x, grad_step, grad_offset, None, None


class _LearnedSign(torch.autograd.Function):
    """``s * sign(w)``: one bit has no level zero, which LSQ's rounding would need. Zero counts as positive."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor) -> Tensor:
        sign = torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
        # A weight beyond two and a half steps has no gradient; with the limit at the step itself it would never return.
        ctx.save_for_backward(sign, weight.abs() <= _SIGN_REACH * step, step)
        return sign * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        sign, inside, step = ctx.saved_tensors
        reduced = [axis for axis in range(grad.dim()) if step.shape[axis] == 1]
        scale = 1.0 / math.sqrt(grad.numel() / step.numel())
        return grad * inside, (sign * grad).sum(dim=reduced, keepdim=True) * scale


def _fake_quantize(x: Tensor, step: Tensor, offset: Tensor | None, low: int, high: int) -> Tensor:
    y: Tensor = _LearnedStep.apply(x, step.clamp_min(_SMALLEST_STEP), offset, low, high)  # type: ignore[no-untyped-call]
    return y


class LearnedStepWeight(WeightQuantizer):
    """Signed integers times a learned real step; one bit: the sign times the step."""

    def __init__(self, site: WeightSite, options: LearnedStepOptions) -> None:
        super().__init__(site)
        self.options = options
        self.step = nn.Parameter(torch.ones(self.per_channel_shape() if options.per_channel else [1] * len(site.shape)))

    def initialise(self, weight: Tensor) -> None:
        """LSQ: ``2 mean|w| / sqrt(Q_P)``. LSQ+: the farther of mean ± 3 sigma over ``2^(b-1)``. One bit: the mean magnitude."""
        axes = [axis for axis in range(weight.dim()) if self.step.shape[axis] == 1]
        mean_magnitude = weight.abs().mean(dim=axes, keepdim=True)
        _, high = weight_range(self.bits)
        if self.bits == 1:
            step = mean_magnitude
        elif self.options.variant == "lsq_plus":
            mean, deviation = weight.mean(dim=axes, keepdim=True), weight.std(dim=axes, keepdim=True, unbiased=False)
            step = torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()) / 2 ** (self.bits - 1)
        else:
            step = 2.0 * mean_magnitude / math.sqrt(high)
        with torch.no_grad():
            self.step.copy_(step.clamp_min(_SMALLEST_STEP))

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight as real values."""
        if self.bits == 1:
            binary: Tensor = _LearnedSign.apply(weight, self.step.clamp_min(_SMALLEST_STEP))  # type: ignore[no-untyped-call]
            return binary
        return _fake_quantize(weight, self.step, None, *weight_range(self.bits))


class LearnedStepActivation(ActivationQuantizer):
    """Unsigned after rectifiers, signed elsewhere, times a learned real step; LSQ+ with a learned offset where signed."""

    def __init__(self, site: ActivationSite, options: LearnedStepOptions) -> None:
        super().__init__()
        self.signed, self.options = site.signed, options
        self.step = nn.Parameter(torch.ones(()))
        self.has_offset = site.signed and options.variant == "lsq_plus"
        self.offset = nn.Parameter(torch.zeros(()), requires_grad=self.has_offset)

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """LSQ: ``2 mean|x| / sqrt(Q_P)``. LSQ+: offset and step that hold the observed range."""
        bits = observed_bits(samples)
        values = torch.cat([sample.float().flatten() for sample in samples.values()])
        low, high = self._range(bits, relu=False)
        with torch.no_grad():
            if self.has_offset:
                least, most = float(values.min()), float(values.max())
                self.step.fill_(max((most - least) / (high - low), _SMALLEST_STEP))
                self.offset.fill_(least - low * float(self.step))
            else:
                self.step.fill_(max(2.0 * float(values.abs().mean()) / math.sqrt(max(high, 1)), _SMALLEST_STEP))

    def _range(self, bits: int, relu: bool) -> tuple[int, int]:
        if not self.signed:
            return 0, int(2**bits - 1)
        low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return (0 if relu and not self.has_offset else low), int(high)

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """Fake-quantize, rectified first where ``relu``."""
        low, high = self._range(bits, relu)
        if relu and self.has_offset:
            x = torch.relu(x)
        return _fake_quantize(x, self.step, self.offset if self.has_offset else None, low, high)


class LearnedStep(Method):
    """LSQ and LSQ+."""

    name = "learned_step"
    summary = "LSQ and LSQ+: learned real steps; a simulation with float scales"
    options_type = LearnedStepOptions
    options: LearnedStepOptions

    @property
    def exact(self) -> bool:
        """Real scales are no integer program."""
        return False

    def shared_step_scale(self, processes: int) -> float:
        """The gradient of an activation's step and offset is divided by the root of its number of values."""
        return 1.0 / math.sqrt(processes)

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """One step for the layer, or for each output channel."""
        return LearnedStepWeight(site, self.options)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """One step, for LSQ+ an offset as well where values are signed."""
        return LearnedStepActivation(site, self.options)
