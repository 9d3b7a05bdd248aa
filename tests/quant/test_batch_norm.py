"""Batch norm statistics against means and variances that numpy forms."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medquant.quant.batch_norm import reestimate_batch_norm


def _batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((4, 2, 5, 3), generator=generator) * (1 + index) + index for index in range(3)]


def test_statistics_become_the_mean_over_batches() -> None:
    norm = nn.BatchNorm2d(2).double()
    network = nn.Sequential(norm, nn.Identity())
    batches = [batch.double() for batch in _batches()]
    network(batches[0])
    reestimate_batch_norm(network, batches)
    arrays = [batch.numpy() for batch in batches]
    means = np.mean([array.mean(axis=(0, 2, 3)) for array in arrays], axis=0)
    variances = np.mean([array.var(axis=(0, 2, 3), ddof=1) for array in arrays], axis=0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-12)
    np.testing.assert_allclose(norm.running_var.numpy(), variances, rtol=1e-12)


def test_a_second_norm_sees_what_the_first_normalises_by_its_own_batch() -> None:
    first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    reestimate_batch_norm(nn.Sequential(first, second), _batches())
    # Normalised by its own batch, a batch of 60 values has mean 0 and unbiased variance 60/59.
    assert second.running_mean is not None
    assert second.running_var is not None
    np.testing.assert_allclose(second.running_mean.numpy(), 0.0, atol=1e-6)
    np.testing.assert_allclose(second.running_var.numpy(), 60 / 59, rtol=1e-4)


def test_nothing_else_changes() -> None:
    norm = nn.BatchNorm2d(2, momentum=0.3)
    network = nn.Sequential(nn.Conv2d(2, 2, 1), norm, nn.Dropout(0.9))
    kept = {name: value.clone() for name, value in network.state_dict().items() if "running" not in name and "tracked" not in name}
    for training in (True, False):
        network.train(training)
        reestimate_batch_norm(network, _batches())
        assert norm.momentum == 0.3
        assert [module.training for module in network.modules()] == [training] * 4
    assert all(torch.equal(network.state_dict()[name], value) for name, value in kept.items())


def test_dropout_is_off_while_statistics_are_taken() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2))
    found = []
    for _ in range(2):
        reestimate_batch_norm(network, _batches())
        found.append(network[1].running_mean.clone())
    assert torch.equal(found[0], found[1])


def test_a_network_without_batch_norm_draws_no_batch() -> None:
    drawn: list[torch.Tensor] = []
    reestimate_batch_norm(nn.Conv2d(2, 2, 1), (drawn.append(batch) or batch for batch in _batches()))
    assert drawn == []
