"""Cross-layer equalization: scale factors moved between layers, so that the channels between them need alike ranges.

Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, arXiv 1906.04721, equations 8 to 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medquant.quant.fold import scale_output_channels
from medquant.quant.graph import Convolution, Graph

if TYPE_CHECKING:
    # Networks import their methods, and a method may equalize.
    from medquant.quant.network import QuantNetwork

_ROUNDS = 20
"""Passes over all pairs; the factors of a chain of layers converge within few."""

_CONVERGED = 1e-3


def equalize_layers(network: QuantNetwork) -> int:
    """Equalize each convolution whose rectified output one other convolution, and nothing else, reads.

    A rectifier lets positive factors through, so ``W1 / s`` and ``W2 * s`` compute the same function. Biases are divided with
    their channel.

    Args:
        network: not yet calibrated; its latent weights and biases change in place.

    Returns:
        Number of pairs.
    """
    pairs = list(equalizable_pairs(network.graph))
    with torch.no_grad():
        for _ in range(_ROUNDS):
            changes = [_equalize(network, first, second) for first, second in pairs]
            if not changes or max(changes) < _CONVERGED:
                break
    return len(pairs)


def equalizable_pairs(graph: Graph) -> Iterator[tuple[Convolution, Convolution]]:
    """Convolution, rectifier, convolution in a row; the second without groups, which would tie input channels to outputs."""
    for second in graph:
        if isinstance(second, Convolution) and second.geometry.groups == 1:
            first = graph[second.inputs[0]]
            if isinstance(first, Convolution) and first.relu and graph.read_once(first.name):
                yield first, second


def _equalize(network: QuantNetwork, first: Convolution, second: Convolution) -> float:
    """Equalize a pair; returns the largest change of a factor, in octaves."""
    before, bias = network.parameters_of(first.name)
    after, _ = network.parameters_of(second.name)
    outgoing, incoming = _output_reach(before, first), _input_reach(after, second)
    known = (outgoing > 0) & (incoming > 0)
    # s = sqrt(r1 * r2) / r2 (equation 11); a channel without weights on one side stays as it is.
    factor = torch.where(known, (outgoing / incoming).sqrt(), 1.0)
    before.copy_(scale_output_channels(before.double(), 1 / factor, first.geometry))
    bias.copy_(bias.double() / factor)
    axis = 0 if second.geometry.transposed else 1
    after.copy_(after.double() * factor.reshape([-1 if each == axis else 1 for each in range(after.dim())]))
    return float(factor.log2().abs().max())


def _output_reach(weight: Tensor, layer: Convolution) -> Tensor:
    """Largest magnitude among the weights of each output channel, (O,), float64."""
    magnitudes = weight.detach().double().abs()
    if not layer.geometry.transposed:
        return magnitudes.flatten(1).amax(dim=1)
    # A transposed weight is (in, out / groups, ...).
    groups = layer.geometry.groups
    return magnitudes.flatten(2).amax(dim=2).reshape(groups, -1, weight.shape[1]).amax(dim=1).reshape(-1)


def _input_reach(weight: Tensor, layer: Convolution) -> Tensor:
    """Largest magnitude among the weights that read each input channel, (I,), float64."""
    magnitudes = weight.detach().double().abs()
    return magnitudes.movedim(0 if layer.geometry.transposed else 1, 0).flatten(1).amax(dim=1)
