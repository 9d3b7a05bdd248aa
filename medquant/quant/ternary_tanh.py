"""The ternary tanh of TernaryNet (Heinrich, Blendowski & Oktay, arXiv 1801.09449), and the torch operator networks hold it as.

An operator of its own, not five of torch's: a network that was read from its export must still know its slope, which training
raises, and the backward pass keeps one tensor instead of five.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SLOPES = (3.0, 8.0)
"""Slope in the first and the last epoch of a run."""

HARD = 1e30
"""A slope at which the function is -1, 0 or 1, but for the two points ±0.5 themselves."""


def ternary_tanh(x: Tensor, beta: float | Tensor) -> Tensor:
    """``(tanh(beta (2x - 1)) + tanh(beta (2x + 1))) / 2``: steps at ±0.5 that grow steep with ``beta``; any shape."""
    return (torch.tanh(beta * (2.0 * x - 1.0)) + torch.tanh(beta * (2.0 * x + 1.0))) / 2.0


@torch.library.custom_op("medquant::ternary_tanh", mutates_args=())
def apply_ternary_tanh(x: Tensor, beta: Tensor) -> Tensor:
    """:func:`ternary_tanh` with its slope in a tensor of one value."""
    return ternary_tanh(x, beta.to(x.dtype))


@apply_ternary_tanh.register_fake
def _(x: Tensor, beta: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    x, beta = ctx.saved_tensors
    slope = beta.to(x.dtype)
    # (1/2) d/dx [tanh(b (2x - 1)) + tanh(b (2x + 1))] = b (2 - tanh^2 - tanh^2)
    left, right = torch.tanh(slope * (2.0 * x - 1.0)), torch.tanh(slope * (2.0 * x + 1.0))
    return grad * slope * (2.0 - left.square() - right.square()), None


apply_ternary_tanh.register_autograd(_backward, setup_context=_keep)


def slope_at(epoch: int, epochs: int) -> float:
    """Slope in an epoch, from 0, of a run of so many: in equal steps from 3 to 8, as released; 8 where there is one epoch only."""
    first, last = SLOPES
    return last if epochs < 2 else first + (last - first) * epoch / (epochs - 1)


def set_slope(network: nn.Module, slope: float) -> None:
    """Set the slope of every ternary tanh a network holds, as a module of it or as an operation of its graph."""
    for beta in _slopes(network):
        beta.fill_(slope)


@contextmanager
def hardened(network: nn.Module) -> Iterator[None]:
    """Within, every ternary tanh of a network is its limit: the sign of x where \\|x\\| is above 0.5, else 0."""
    found = _slopes(network)
    before = [beta.clone() for beta in found]
    for beta in found:
        beta.fill_(HARD)
    try:
        yield
    finally:
        for beta, slope in zip(found, before, strict=True):
            beta.copy_(slope)


def _slopes(network: nn.Module) -> list[Tensor]:
    return [beta for module in network.modules() if isinstance(module, HoldsSlopes) for beta in module.slopes()]


class HoldsSlopes(nn.Module):
    """A module with slopes of ternary tanhs among its buffers."""

    def slopes(self) -> list[Tensor]:
        """The slopes themselves, changed in place."""
        raise NotImplementedError
