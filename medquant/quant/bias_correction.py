"""Bias correction: what quantization shifts a channel's mean by, on calibration images, is taken out of its bias.

Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, arXiv 1906.04721, §4.2; here with measured
means (their appendix D, "empirical bias correction"), layer after layer, each corrected with those before it quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medquant.quant.graph import Convolution

if TYPE_CHECKING:
    # Networks import their methods, and a method may correct biases.
    from medquant.quant.network import QuantNetwork

_MOST_VOXELS = 2**18
"""Voxels of images that are walked through the network side by side: one tensor of 64 channels of them is 64 MiB."""


def correct_biases(network: QuantNetwork, batches: Sequence[Tensor]) -> None:
    """Make the mean of every convolution's outputs, channel by channel, that of the float network.

    Args:
        network: calibrated; its biases change in place, its quantizers stay.
        batches: images of training cases, each (N, C, *S); the first of them are used, one batch at least.
    """
    used = _first(batches)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            expected = _float_means(network, used)

            def correct(layer: Convolution, outputs: list[Tensor]) -> list[Tensor]:
                shift = expected[layer.name] - _mean(outputs)
                _, bias = network.parameters_of(layer.name)
                bias.add_(shift.to(bias.dtype))
                return [output + shift.to(output.dtype).reshape(1, -1, *[1] * (output.dim() - 2)) for output in outputs]

            network.walk(used, correct)
    finally:
        network.train(was_training)


def _first(batches: Sequence[Tensor]) -> list[Tensor]:
    used, voxels = [batches[0]], batches[0][:, 0].numel()
    for batch in batches[1:]:
        voxels += batch[:, 0].numel()
        if voxels > _MOST_VOXELS:
            break
        used.append(batch)
    return used


def _float_means(network: QuantNetwork, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean of every convolution's outputs by channel, over all batches, weighted by their size."""
    sums: dict[str, Tensor] = {}

    def add(layer: Convolution, outputs: list[Tensor]) -> list[Tensor]:
        weighted = _mean(outputs) * (batch.shape[0] / total)
        sums[layer.name] = sums.get(layer.name, 0) + weighted
        return outputs

    total = sum(batch.shape[0] for batch in batches)
    for batch in batches:
        network.walk([batch], add, quantized=False)
    return sums


def _mean(outputs: Sequence[Tensor]) -> Tensor:
    """Mean over all axes but the channels', float64."""
    count = sum(output[:, 0].numel() for output in outputs)
    axes = [0, *range(2, outputs[0].dim())]
    return sum((output.sum(dim=axes, dtype=torch.float64) for output in outputs), torch.zeros(())) / count
