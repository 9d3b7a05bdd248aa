"""Dynamic fixed point: fixed point whose number of integer bits follows the values of a group of tensors.

Courbariaux, Bengio and David, "Training deep neural networks with low precision multiplications" (2014), sections 4 to 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NumberKind = Literal["dynamic", "fixed", "half", "float"]

WARM_UP_WIDTH = 32
"""Width, sign included, at which ranges are searched before training: 31 bits of magnitude."""

_UNSET_INTEGER_BITS = 5


@dataclass(frozen=True)
class NumberFormat:
    """How the tensors of a network are rounded.

    Args:
        kind: ``dynamic`` or ``fixed`` point, IEEE ``half``, or ``float`` as it is.
        propagation_bits: width of everything that is multiplied, the sign included.
        update_bits: width of stored parameters, the sign included.
        r_max: highest rate of values that do not fit.
        initial_integer_bits: where ranges start; None: at the least that holds the first tensor of the group.
    """

    kind: NumberKind
    propagation_bits: int
    update_bits: int
    r_max: float = 1e-4
    initial_integer_bits: int | None = _UNSET_INTEGER_BITS


def fixed(x: Tensor, magnitude_bits: int, integer_bits: Tensor | int) -> Tensor:
    """Round half to even to multiples of ``2**-(NOB - NOIB)`` and saturate at ``±(2**NOB - 1)`` of them (section 4).

    Args:
        x: any shape, float.
        magnitude_bits: NOB, the width without the sign.
        integer_bits: NOIB, how many of them stand before the radix point; may be negative, or more than NOB. A scalar.

    >>> fixed(torch.tensor([0.3, 0.4, 9.0, -9.0]), 3, 1).tolist()
    [0.25, 0.5, 1.75, -1.75]
    """
    scale = torch.exp2(torch.as_tensor(magnitude_bits - integer_bits, dtype=torch.float32, device=x.device))
    limit = float(2**magnitude_bits - 1)
    return (x.float() * scale).round().clamp(-limit, limit).div(scale).to(x.dtype)


def overflow_rates(x: Tensor, magnitude_bits: int, integer_bits: Tensor | int) -> Tensor:
    """The share of values at or beyond the largest representable one, and the same with half the range; shape (2,)."""
    largest = torch.exp2(torch.as_tensor(integer_bits, dtype=torch.float32, device=x.device)) * (1 - 2.0**-magnitude_bits)
    magnitude = x.detach().abs().float()
    return torch.stack([(magnitude >= largest).float().mean(), (magnitude >= largest / 2).float().mean()])


def fitting_integer_bits(x: Tensor, magnitude_bits: int, r_max: float) -> Tensor:
    """The least NOIB with an overflow rate of at most ``r_max``; NaN where no value differs from zero or one is not finite."""
    magnitude = x.detach().abs().float().flatten()
    allowed = int(r_max * magnitude.numel())
    largest = torch.topk(magnitude, allowed + 1).values[-1]
    bits = torch.floor(torch.log2(largest / (1 - 2.0**-magnitude_bits))) + 1
    return torch.where((largest > 0) & torch.isfinite(largest), bits, torch.nan)


class ScaleGroup(nn.Module):
    """One scale factor: the range of a group of tensors, and how often they left it since it was last changed.

    Everything is a buffer, so that a resumed run goes on as it was; nothing is fetched from the device.

    Args:
        numbers: how tensors are rounded.
    """

    integer_bits: Tensor
    rates: Tensor
    tensors: Tensor
    is_set: Tensor

    def __init__(self, numbers: NumberFormat) -> None:
        super().__init__()
        self.numbers = numbers
        start = numbers.initial_integer_bits
        self.register_buffer("integer_bits", torch.tensor(float(_UNSET_INTEGER_BITS if start is None else start)))
        self.register_buffer("rates", torch.zeros(2))
        self.register_buffer("tensors", torch.zeros(()))
        self.register_buffer("is_set", torch.tensor(start is not None))
        self._is_known = False
        self.searching = False
        """Whether training only looks for ranges, at :data:`WARM_UP_WIDTH`."""

    def round(self, x: Tensor, width: int) -> Tensor:
        """The tensor in this group's format, without gradients; ``width`` with the sign, 2 or more."""
        if self.numbers.kind == "float":
            return x.view_as(x)
        if self.numbers.kind == "half":
            return x.half().to(x.dtype)
        return fixed(x, (WARM_UP_WIDTH if self.searching and self.training else width) - 1, self.integer_bits)

    def observe(self, x: Tensor, width: int) -> None:
        """In training, count the values beyond the range; a range that is to be measured is set from the first tensor that is not zero."""
        if self.numbers.kind != "dynamic" or not self.training:
            return
        if self.numbers.initial_integer_bits is None:
            self._set_from(x, width - 1)
        self.rates += overflow_rates(x, width - 1, self.integer_bits)
        self.tensors += 1

    def _set_from(self, x: Tensor, magnitude_bits: int) -> None:
        # Asked of the device only until it says yes once.
        self._is_known = self._is_known or bool(self.is_set)
        if not self._is_known:
            found = fitting_integer_bits(x, magnitude_bits, self.numbers.r_max)
            self.integer_bits.copy_(torch.where(found.isnan(), self.integer_bits, found))
            self.is_set |= ~found.isnan()

    def adapt(self) -> None:
        """One more integer bit where values overflowed too often, one less where they would not with half the range (section 7)."""
        over, over_half = (self.rates / self.tensors.clamp_min(1)).unbind()
        change = torch.where(over > self.numbers.r_max, 1.0, torch.where(over_half > self.numbers.r_max, 0.0, -1.0))
        self.integer_bits += torch.where(self.tensors > 0, change, 0.0)
        self.forget()

    def forget(self) -> None:
        """Start counting anew."""
        self.rates.zero_()
        self.tensors.zero_()


class _Propagate(torch.autograd.Function):
    """Round the values on the way forward and their gradients on the way back, each in its own group's format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: ScaleGroup | None, gradients: ScaleGroup, width: int, gradient_width: int) -> Tensor:
        ctx.gradients, ctx.gradient_width = gradients, gradient_width
        if values is None:
            return x.view_as(x)
        values.observe(x, width)
        return values.round(x, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        ctx.gradients.observe(grad, ctx.gradient_width)
        return ctx.gradients.round(grad, ctx.gradient_width), None, None, None, None


class _Cast(torch.autograd.Function):
    """Round the values; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: ScaleGroup, width: int) -> Tensor:
        return values.round(x, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class PropagatedTensor(nn.Module):
    """A tensor that is propagated, and its gradient: two groups.

    Args:
        numbers: how tensors are rounded.
        width: bits of the values, the sign included; None leaves them as they are.
        gradient_width: bits of the gradient, the sign included.
    """

    def __init__(self, numbers: NumberFormat, width: int | None, gradient_width: int) -> None:
        super().__init__()
        self.width, self.gradient_width = width, gradient_width
        self.values = None if width is None else ScaleGroup(numbers)
        self.gradients = ScaleGroup(numbers)

    def forward(self, x: Tensor, width: int | None = None) -> Tensor:
        """The rounded tensor, same shape; ``width`` in place of the usual one."""
        result: Tensor = _Propagate.apply(  # type: ignore[no-untyped-call]
            x, self.values, self.gradients, width or self.width or 0, self.gradient_width
        )
        return result


class StoredParameter(nn.Module):
    """A parameter that is stored with more bits than it is multiplied with, and its gradient: two groups.

    Both casts of the parameter share one range, watched where it is stored.

    Args:
        numbers: how tensors are rounded.
        width: bits it is multiplied with, the sign included.
        gradient_width: bits of its gradient, the sign included.
    """

    def __init__(self, numbers: NumberFormat, width: int, gradient_width: int) -> None:
        super().__init__()
        self.width, self.gradient_width, self.update_width = width, gradient_width, numbers.update_bits
        self.values, self.gradients = ScaleGroup(numbers), ScaleGroup(numbers)

    def forward(self, parameter: Tensor) -> Tensor:
        """The parameter as it is multiplied, same shape."""
        result: Tensor = _Cast.apply(parameter, self.values, self.width)  # type: ignore[no-untyped-call]
        return result

    def round_gradient(self, parameter: Tensor) -> None:
        """Put its gradient into its format, in place; a parameter without gradient is left alone."""
        if parameter.grad is not None:
            self.gradients.observe(parameter.grad, self.gradient_width)
            parameter.grad.copy_(self.gradients.round(parameter.grad, self.gradient_width))

    def store(self, parameter: Tensor) -> None:
        """Put the parameter itself into the format it is stored in, in place."""
        with torch.no_grad():
            self.watch(parameter)
            parameter.copy_(self.values.round(parameter, self.update_width))

    def watch(self, parameter: Tensor) -> None:
        """Count overflows by the narrower of its two formats, which saturates first."""
        self.values.observe(parameter, min(self.width, self.update_width))


def adapt_ranges(module: nn.Module) -> None:
    """Let every group of a network follow what it has seen."""
    for group in module.modules():
        if isinstance(group, ScaleGroup) and group.numbers.kind == "dynamic":
            group.adapt()


def forget_overflows(module: nn.Module) -> None:
    """Start counting anew in every group of a network."""
    for group in module.modules():
        if isinstance(group, ScaleGroup):
            group.forget()


def search_ranges(module: nn.Module, searching: bool) -> None:
    """Let every group of a network compute with 31 bits of magnitude in training, or with its own width again."""
    for group in module.modules():
        if isinstance(group, ScaleGroup):
            group.searching = searching
