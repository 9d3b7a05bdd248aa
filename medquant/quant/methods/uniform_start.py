"""Quantized weights that start from U(-1, 1), as those of the 2019 paper's released code, and their biases from zero."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork


def draw_uniform(weight: Tensor, name: str) -> None:
    """Draw a layer's weight anew, in place: from the run's seed and the layer's name alone."""
    # A generator of its own: what was drawn before differs between a run and its resumption.
    generator = torch.Generator().manual_seed((torch.initial_seed() + zlib.crc32(name.encode())) % 2**63)
    weight.copy_(torch.rand(tuple(weight.shape), generator=generator).mul_(2.0).sub_(1.0))


def zero_biases(network: QuantNetwork) -> None:
    """Set the bias of every layer with quantized weights to zero."""
    with torch.no_grad():
        for name, _ in network.named_weights():
            if network.weight_quantizer(name) is not None:
                network.layer_parameters(name)[1].zero_()
