"""Layers whose result depends on the whole batch, where each process holds only a part of it: batch norm and dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from medquant.train.distributed import Group

_OVER_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_AS_A_WHOLE = (nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextmanager
def whole_batch(network: nn.Module, group: Group) -> Iterator[None]:
    """Within, batch norm in training mode takes its statistics from the parts of all processes, and dropout draws for all of them.

    Args:
        network: changed for as long as this lasts, not in what it stores.
        group: the processes; in a group of one nothing is changed.
    """
    changed: list[nn.Module] = []
    try:
        if group.size > 1:
            for module in network.modules():
                forward = _forward_of(module, group)
                if forward is not None:
                    module.forward = forward
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _forward_of(module: nn.Module, group: Group) -> Callable[[Tensor], Tensor] | None:
    if isinstance(module, _BatchNorm) and module.training:
        norm = module
        return lambda x: _batch_norm(norm, x, group)
    if isinstance(module, _DropoutNd) and not isinstance(module, _AS_A_WHOLE) and module.training and module.p > 0:
        dropout = module
        return lambda x: _dropout(dropout, x, group)
    return None


def _batch_norm(norm: _BatchNorm, x: Tensor, group: Group) -> Tensor:
    """As torch's own, over (N, C, *S) of all processes."""
    mean, variance, count = _gather_statistics(x.detach(), group)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        _follow(norm, mean, variance * (count / max(count - 1, 1)))
    y: Tensor = _Normalise.apply(x, norm.weight, norm.bias, mean, variance, count, norm.eps, group)  # type: ignore[no-untyped-call]
    return y


def _gather_statistics(x: Tensor, group: Group) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each channel, (C,) in float64, over the parts of all processes, and the values of a channel.

    The parts are of one size. Their variances are joined with the distances of their means (Chan et al., 1979), which loses no
    digits where a mean is large.
    """
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [axis for axis in range(x.dim()) if axis != 1]
    variance, mean = torch.var_mean(values, dim=axes, correction=0)
    parts = group.gather(torch.stack([mean.double(), variance.double()]))
    whole = parts[:, 0].mean(dim=0)
    within = (parts[:, 1] + (parts[:, 0] - whole).square()).mean(dim=0)
    return whole, within, group.size * x.numel() // x.shape[1]


def _follow(norm: _BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """Let the running statistics follow, as torch does."""
    counted = norm.num_batches_tracked
    if counted is not None:
        counted.add_(1)
    momentum = norm.momentum if norm.momentum is not None or counted is None else 1.0 / float(counted)
    if momentum is None:
        return
    with torch.no_grad():
        for running, now in ((norm.running_mean, mean), (norm.running_var, unbiased)):
            if running is not None:
                running.mul_(1.0 - momentum).add_(now.to(running.dtype), alpha=momentum)


class _Normalise(torch.autograd.Function):
    """``weight * (x - mean) / sqrt(variance + eps) + bias``, whose mean and variance depend on the values of every process."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: int,
        eps: float,
        group: Group,
    ) -> Tensor:
        kind = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        inverse = (variance + eps).rsqrt().to(kind)
        mean = mean.to(kind)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count, ctx.group, ctx.has_bias = count, group, bias is not None
        scale = inverse if weight is None else inverse * weight
        y = (x - _over(mean, x)) * _over(scale, x)
        return (y if bias is None else y + _over(bias, x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        axes = [axis for axis in range(x.dim()) if axis != 1]
        grad = grad.to(inverse.dtype)
        normal = (x - _over(mean, x)) * _over(inverse, x)
        own = torch.stack([grad.sum(dim=axes), (grad * normal).sum(dim=axes)])
        along, slope = (ctx.group.total(own) / ctx.count).unbind()
        scale = inverse if weight is None else inverse * weight
        grad_x = (grad - _over(along, x) - normal * _over(slope, x)) * _over(scale, x)
        # Weight and bias take their own process's part: all gradients of parameters are summed together afterwards.
        grad_weight = None if weight is None else own[1].to(weight.dtype)
        return grad_x.to(x.dtype), grad_weight, own[0] if ctx.has_bias else None, None, None, None, None, None


def _over(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (x.dim() - 2))


def _dropout(dropout: _DropoutNd, x: Tensor, group: Group) -> Tensor:
    """Draw for the whole batch, as one process would, and use this one's rows."""
    rows = group.share(range(x.shape[0] * group.size))
    shape = (x.shape[0] * group.size, *x.shape[1:])
    if isinstance(dropout, _OVER_CHANNELS):
        ones = x.new_ones((shape[0], shape[1], *[1] * (x.dim() - 2)))
        drawn = {1: F.dropout1d, 2: F.dropout2d, 3: F.dropout3d}[x.dim() - 2](ones, dropout.p, True)
    else:
        ones = x.new_ones(shape)
        is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        drawn = F.dropout(ones.contiguous(memory_format=torch.channels_last) if is_last else ones, dropout.p, True)
    return x * drawn[rows.start : rows.stop]
