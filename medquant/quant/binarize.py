"""Binary weights and activations: the signs, their probabilities, and the ranges and rates that go with them.

BinaryConnect (Courbariaux et al., 2015, sections 2.2 to 2.5) and the binary activations of its successor (2016).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Binarize(torch.autograd.Function):
    """Signs times a scale; the gradient with respect to the signs is applied to the real weight as it is."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, positive: Tensor, scale: float) -> Tensor:
        return torch.where(positive, scale, -scale).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


class _Sign(torch.autograd.Function):
    """The sign, zero counted as positive; the gradient passes where ``|x| <= 1``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        masked: Tensor = grad * (x.abs() <= 1)
        return masked


def hard_sigmoid(x: Tensor) -> Tensor:
    """``clip((x + 1) / 2, 0, 1)`` (BinaryConnect, equation 3), any shape."""
    return ((x + 1) / 2).clamp(0, 1)


def binarize(weight: Tensor, scale: float) -> Tensor:
    """``scale`` where the weight is at least zero, ``-scale`` elsewhere (equation 1); straight-through gradient.

    Args:
        weight: real weights, any shape.
        scale: H, positive.
    """
    result: Tensor = _Binarize.apply(weight, weight >= 0, scale)  # type: ignore[no-untyped-call]
    return result


def binarize_randomly(weight: Tensor, scale: float, generator: torch.Generator | None = None) -> Tensor:
    """``scale`` with probability ``hard_sigmoid(weight / scale)``, ``-scale`` otherwise (equation 2); straight-through gradient.

    Args:
        weight: real weights, any shape.
        scale: H, positive.
        generator: source of the draws, on the processor; None takes torch's own for the weight's device.
    """
    chance = hard_sigmoid(weight.detach() / scale)
    # Without a generator of its own, the draws are part of the training state that checkpoints keep.
    draws = torch.rand_like(chance) if generator is None else torch.rand(chance.shape, generator=generator).to(chance.device)
    result: Tensor = _Binarize.apply(weight, draws < chance, scale)  # type: ignore[no-untyped-call]
    return result


def sign(x: Tensor) -> Tensor:
    """One for values of at least zero, minus one for others; the gradient passes where ``|x| <= 1``."""
    result: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return result


def glorot_coefficient(fan_in: int, fan_out: int) -> float:
    """``sqrt(1.5 / (fan_in + fan_out))``: half the limit of Glorot's uniform start (section 2.5).

    Args:
        fan_in: inputs of one output value, kernel included.
        fan_out: output channels times the kernel.

    >>> glorot_coefficient(2, 4)
    0.5
    """
    return math.sqrt(1.5 / (fan_in + fan_out))


def glorot_rate(fan_in: int, fan_out: int, squared: bool) -> float:
    """What a binary layer's learning rate is multiplied by: the reciprocal coefficient (Adam), or its square (SGD)."""
    return glorot_coefficient(fan_in, fan_out) ** (-2 if squared else -1)
