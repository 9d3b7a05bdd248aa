"""Fake quantization with straight-through gradients: rounding in the forward pass, LSQ's rule in the backward pass.

Steps are powers of two, ``s = 2**round(t)``, learned through ``t``. The gradient of a step is that of LSQ (Esser et al., 2020):
``round(v) - v`` inside the range and the clipped integer outside it, scaled by ``1 / sqrt(N * Q_P)``, times ``s * ln 2`` because
``t`` is a logarithm. Every pass below walks the tensor once and in place where it can: on a CPU these passes, not the
arithmetic, are what quantization-aware training costs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medquant.quant.formats import weight_range

LN2 = math.log(2.0)


class _FakeQuantizeActivation(torch.autograd.Function):
    """``y = clamp(round(x / s), low, high) * s`` for one step per tensor; low and high are real-zero based integers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log2_step: Tensor, step: float, low: int, high: int) -> Tensor:
        # A power of two multiplies exactly, so x * (1/s) equals x / s.
        y = x.mul(1.0 / step).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(x, y)
        ctx.limits = (low * step, high * step)
        # LSQ's 1/sqrt(N*Q_P), with N the elements of the tensor and Q_P its highest level.
        ctx.step_gradient_scale = LN2 / math.sqrt(x.numel() * max(high, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, y = ctx.saved_tensors
        low, high = ctx.limits
        # hardtanh's backward is one vectorised pass: its first argument where low < x < high, zero elsewhere. One buffer serves
        # the whole backward pass: fresh memory for each step costs a CPU more (page faults) than the arithmetic.
        buffer = torch.empty_like(x)
        grad_log2_step = None
        if ctx.needs_input_grad[1]:
            # s * dy/ds = y - x inside the range and y outside it; x masked to the range makes both one subtraction.
            torch.ops.aten.hardtanh_backward.grad_input(x, x, low, high, grad_input=buffer)
            torch.sub(y, buffer, out=buffer)
            grad_log2_step = buffer.mul_(grad).sum().float() * ctx.step_gradient_scale
        grad_x = torch.ops.aten.hardtanh_backward.grad_input(grad, x, low, high, grad_input=buffer)
        return grad_x, grad_log2_step, None, None, None


class _FakeQuantizeWeight(torch.autograd.Function):
    """``q * 2**round(t[c])`` for one step per output channel; ``t`` is broadcastable to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log2_step: Tensor, bits: int) -> Tensor:
        step = torch.exp2(torch.round(log2_step))
        # The result is not saved: a convolution in bfloat16 keeps a copy of its own, and rounding again is cheap.
        ctx.save_for_backward(weight, step)
        ctx.bits = bits
        return quantize_weight(weight, step, bits).mul_(step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight, step = ctx.saved_tensors
        below, above = _weight_mask(ctx.bits)
        integer = weight.div(step)
        grad_weight = torch.ops.aten.hardtanh_backward(grad, integer, below, above)
        if not ctx.needs_input_grad[1]:
            return grad_weight, None, None
        slope = quantize_weight(weight, step, ctx.bits)
        if ctx.bits > 1:
            # round(v) - v inside the range, the clipped integer outside. For one bit the step is the whole value, so the slope
            # is sign(w), inside and outside alike.
            slope.sub_(torch.ops.aten.hardtanh_backward.grad_input(integer, integer, below, above, grad_input=integer))
        reduced = [axis for axis in range(weight.dim()) if step.shape[axis] == 1]
        per_step = weight.numel() / step.numel()
        scale = step * (LN2 / math.sqrt(per_step * weight_range(ctx.bits)[1]))
        return grad_weight, slope.mul_(grad).sum(dim=reduced, keepdim=True).mul_(scale), None


class _RoundToGrid(torch.autograd.Function):
    """Round to multiples of ``grid`` (a power of two, broadcastable); the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        return x.div(grid).round_().mul_(grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@lru_cache
def _weight_mask(bits: int) -> tuple[float, float]:
    """Limits in integers between which, themselves left out, a weight receives the gradient: all that round into the range.

    Binary weights pass the gradient up to two and a half scales: with a mask at the scale itself, a weight beyond it would
    never return.
    """
    low, high = weight_range(bits)
    reach = 2.0 if bits == 1 else 1.0
    ends = torch.tensor([low * reach - 0.5, high * reach + 0.5])
    below, above = torch.nextafter(ends, torch.tensor([-math.inf, math.inf])).tolist()
    return below, above


def quantize_weight(weight: Tensor, step: Tensor, bits: int) -> Tensor:
    """The weight's integers, as floats: round half to even, saturated; one bit gives the sign, with zero counted as positive.

    Args:
        weight: any shape.
        step: positive powers of two, broadcastable to ``weight``.
        bits: 1 to 8.
    """
    if bits == 1:
        return torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
    low, high = weight_range(bits)
    return weight.div(step).round_().clamp_(low, high)


def fake_quantize_activation(x: Tensor, log2_step: Tensor, step: float, low: int, high: int) -> Tensor:
    """Quantize a tensor with one learned power-of-two step.

    Args:
        x: any shape, float32 or bfloat16.
        log2_step: scalar, the learned logarithm; it receives the step's gradient.
        step: ``2**round(log2_step)`` as a number, so that a network fetches all its steps from the device at once.
        low: lowest integer relative to real zero (0 also applies a rectifier).
        high: highest integer relative to real zero.

    Returns:
        Multiples of the step, same shape and type as ``x``.
    """
    result: Tensor = _FakeQuantizeActivation.apply(x, log2_step, step, low, high)  # type: ignore[no-untyped-call]
    return result


def fake_quantize_weight(weight: Tensor, log2_step: Tensor, bits: int) -> Tensor:
    """Quantize a weight with one learned power-of-two step for each output channel (or for all).

    Args:
        weight: any shape.
        log2_step: broadcastable to ``weight``, with size one along every axis it is shared over.
        bits: 1 to 8.
    """
    result: Tensor = _FakeQuantizeWeight.apply(weight, log2_step, bits)  # type: ignore[no-untyped-call]
    return result


def round_to_grid(x: Tensor, grid: Tensor) -> Tensor:
    """Round half to even to multiples of ``grid``, powers of two broadcastable to ``x``; straight-through gradient."""
    result: Tensor = _RoundToGrid.apply(x, grid)  # type: ignore[no-untyped-call]
    return result
