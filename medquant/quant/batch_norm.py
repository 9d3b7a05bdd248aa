"""Batch norm statistics over many batches at once, instead of the running average of the last few."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
