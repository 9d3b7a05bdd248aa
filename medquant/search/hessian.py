"""How sharply the loss curves along each layer's weights: the trace of its Hessian, by Hutchinson's estimator.

For a random vector v of signs, the mean of vᵀHv is the trace of H (Hutchinson, 1989). One vector over all weights gives every
layer's estimate at once, since the parts between two layers have mean zero. Half the mean trace times the squared error of
quantization is the loss a layer's quantization is expected to add (Dong et al., "HAWQ-V2", NeurIPS 2020).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from medquant.quant.network import QuantNetwork
from medquant.train.losses import segmentation_loss

_SEED = 20_000


@dataclass(frozen=True)
class Trace:
    """A layer's trace.

    Args:
        samples: one estimate a vector.
        weights: number of weights.
    """

    samples: tuple[float, ...]
    weights: int

    @property
    def mean(self) -> float:
        """The estimate."""
        return statistics.fmean(self.samples)

    @property
    def standard_error(self) -> float:
        """Of the estimate; infinite for a single vector."""
        return statistics.stdev(self.samples) / math.sqrt(len(self.samples)) if len(self.samples) > 1 else math.inf

    def expected_rise(self, squared_error: float) -> float:
        """Loss a quantization error is expected to add; a trace that cannot be told from 0 counts as its standard error."""
        floor = self.standard_error if math.isfinite(self.standard_error) else 0.0
        return 0.5 * max(self.mean, floor) / self.weights * squared_error


def trace_sample(network: QuantNetwork, images: Tensor, labels: Tensor, number: int) -> dict[str, float]:
    """One estimate of every layer's trace, from one vector and one batch.

    Args:
        network: float throughout, batch norm folded as the quantized network has it; is put into evaluation mode.
        images: (N, C, *S).
        labels: (N, *S), int64.
        number: of the vector; the same one gives the same signs.

    Returns:
        Layer → vᵀHv over that layer's part of v.
    """
    network.eval()
    named = dict(network.named_weights())
    generator = torch.Generator().manual_seed(_SEED + number)
    signs = [2.0 * torch.randint(0, 2, weight.shape, generator=generator).to(weight) - 1.0 for weight in named.values()]
    with torch.enable_grad():
        loss = segmentation_loss(network(images), labels)
        gradients = torch.autograd.grad(loss, list(named.values()), create_graph=True)
        products = torch.autograd.grad(gradients, list(named.values()), grad_outputs=signs)
    return {name: float((sign * product).sum()) for name, sign, product in zip(named, signs, products, strict=True)}


def squared_error(network: QuantNetwork, layer: str) -> float:
    """Squared distance between a layer's weights and their quantized values, as calibrated."""
    quantizer = network.weight_quantizer(layer)
    if quantizer is None:
        return 0.0
    with torch.no_grad():
        weight, _ = network.layer_parameters(layer)
        return float((quantizer(weight) - weight).double().square().sum())
