"""The network of the digits benchmark, in float, with binary weights, or in the number formats of dynamic fixed point.

Binary weights and number formats are those of ``medquant.quant``: what is measured here is the code that trains segmentation
networks, on a task of the kind both papers use (permutation-invariant classification, L2-SVM on top).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.quant.binarize import binarize, binarize_randomly, glorot_rate
from medquant.quant.dynamic_fixed_point import NumberFormat, PropagatedTensor, ScaleGroup, StoredParameter, adapt_ranges

WIDTHS = (64, 128, 128, 128, 10)
_PERIOD = 100


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: row of the table.
        binarization: of weights in training, None for real ones.
        rate_scaling: whether binary layers learn at Glorot's reciprocal coefficient.
        dropout: share of hidden units dropped.
        numbers: format of everything, None for float with batch norm (BinaryConnect's network).
    """

    name: str
    binarization: Literal["deterministic", "stochastic"] | None = None
    rate_scaling: bool = True
    dropout: float = 0.0
    numbers: NumberFormat | None = None


class BinaryLayer(nn.Module):
    """Linear and batch norm; weights real or ±1 in training, at test time binary where deterministic and real where stochastic."""

    def __init__(self, fan_in: int, fan_out: int, variant: Variant) -> None:
        super().__init__()
        self.kind = variant.binarization
        self.rate = 1.0 if self.kind is None or not variant.rate_scaling else glorot_rate(fan_in, fan_out, squared=False)
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))
        if self.kind is None:
            nn.init.xavier_uniform_(self.weight)
        else:
            nn.init.uniform_(self.weight, -1, 1)
        self.norm = nn.BatchNorm1d(fan_out, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.kind == "deterministic":
            weight = binarize(weight, 1.0)
        elif self.kind == "stochastic" and self.training:
            weight = binarize_randomly(weight, 1.0)
        result: Tensor = self.norm(F.linear(x, weight))
        return result

    def after_step(self) -> None:
        if self.kind is not None:
            with torch.no_grad():
                self.weight.clamp_(-1, 1)


class FormatLayer(nn.Module):
    """Linear without batch norm; the paper's ten groups, and those of the two momentum buffers."""

    def __init__(self, fan_in: int, fan_out: int, numbers: NumberFormat) -> None:
        super().__init__()
        bits = numbers.propagation_bits
        self.weight, self.bias = nn.Parameter(torch.empty(fan_out, fan_in)), nn.Parameter(torch.zeros(fan_out))
        nn.init.xavier_uniform_(self.weight)
        self.stored_weight, self.stored_bias = StoredParameter(numbers, bits, bits), StoredParameter(numbers, bits, bits)
        self.sums = PropagatedTensor(numbers, bits, bits)
        self.momenta = nn.ModuleList(ScaleGroup(numbers) for _ in range(2))
        self.update_bits = numbers.update_bits
        with torch.no_grad():
            self.stored_weight.watch(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.sums(F.linear(x, self.stored_weight(self.weight), self.stored_bias(self.bias)))
        return result

    def after_backward(self) -> None:
        self.stored_weight.round_gradient(self.weight)
        self.stored_bias.round_gradient(self.bias)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.stored_weight.store(self.weight)
        self.stored_bias.store(self.bias)
        for group, parameter in zip(self.momenta, (self.weight, self.bias), strict=True):
            buffer = optimizer.state[parameter]["momentum_buffer"]
            group.observe(buffer, self.update_bits)
            buffer.copy_(group.round(buffer, self.update_bits))


class DigitsNetwork(nn.Module):
    """Three hidden layers of rectifiers. Shape: (N, 64) → (N, 10)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant, numbers = variant, variant.numbers
        pairs = list(pairwise(WIDTHS))
        self.layers = nn.ModuleList(BinaryLayer(*pair, variant) if numbers is None else FormatLayer(*pair, numbers) for pair in pairs)
        bits = 0 if numbers is None else numbers.propagation_bits
        self.written = nn.ModuleList([] if numbers is None else (PropagatedTensor(numbers, bits, bits) for _ in pairs))
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            if len(self.written):
                x = self.written[index](x)
            x = layer(x)
            if index < len(self.layers) - 1:
                x = F.dropout(torch.relu(x), self.variant.dropout, self.training)
        return x

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Adam for BinaryConnect's network, SGD with momentum for the number formats, as in the papers."""
        if self.variant.numbers is not None:
            return torch.optim.SGD([{"params": list(self.parameters()), "scale": 1.0}], rate, momentum=0.9)
        scaled = [{"params": [layer.weight], "scale": layer.rate} for layer in self.layers]
        others = [parameter for layer in self.layers for parameter in layer.norm.parameters()]
        return torch.optim.Adam([*scaled, {"params": others, "scale": 1.0}], rate)

    def train_step(self, x: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """One step on a batch; the loss before it."""
        optimizer.zero_grad(set_to_none=True)
        loss = squared_hinge(self(x), labels)
        loss.backward()
        if self.variant.numbers is None:
            optimizer.step()
            for layer in self.layers:
                layer.after_step()
        else:
            for layer in self.layers:
                layer.after_backward()
            optimizer.step()
            for layer in self.layers:
                layer.after_step(optimizer)
            self.steps += 1
            if self.steps % _PERIOD == 0:
                adapt_ranges(self)
        return float(loss.detach())


def squared_hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    """The L2-SVM loss: ``max(0, 1 - t y)²`` with t one for the true class and minus one for the others, mean over all."""
    targets = 2.0 * F.one_hot(labels, outputs.shape[1]) - 1.0
    return F.relu(1.0 - targets * outputs).square().mean()
