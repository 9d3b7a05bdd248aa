"""Batch norm as a live layer, and its statistics over many batches at once, instead of the running average of the last few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medquant.quant.graph import BatchNorm


def reestimate_batch_norm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every running mean and variance to the average over ``batches`` ("precise batch norm"; Wu & Johnson, 2021).

    Args:
        network: left in the mode it was in; nothing but the statistics changes.
        batches: training images, (N, C, *S).
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    was_training = network.training
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain average over all batches
        norm.train()
    with torch.no_grad():
        for images in batches:
            network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)


@contextmanager
def with_batch_statistics(network: nn.Module) -> Iterator[None]:
    """Within, batch norm of a network takes the statistics of what it is shown; those it keeps do not change."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.training, norm.track_running_stats, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.train()
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    try:
        yield
    finally:
        for norm, (was_training, tracks, mean, variance) in zip(norms, kept, strict=True):
            norm.train(was_training)
            norm.track_running_stats, norm.running_mean, norm.running_var = tracks, mean, variance


def live_norm(operation: BatchNorm) -> nn.BatchNorm1d:
    """Batch norm as a layer; :class:`_AnyAxesNorm` takes images of any number of axes."""
    found = operation.parameters
    norm = _AnyAxesNorm(found.gain.numel(), eps=found.epsilon)
    state = {"weight": found.gain, "bias": found.offset, "running_mean": found.mean, "running_var": found.variance}
    norm.load_state_dict({**norm.state_dict(), **{name: tensor.detach().float() for name, tensor in state.items()}})
    return norm


class _AnyAxesNorm(nn.BatchNorm1d):
    """Batch norm over (N, C, *S) for any S."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass
