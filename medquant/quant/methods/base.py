"""What a quantization method provides: two quantizers, one for weights and one for activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from medquant.quant.formats import TensorFormat


class WeightQuantizer(nn.Module, ABC):
    """Fake-quantizes the weight of one layer.

    Args:
        weight_shape: shape of the weight.
        channel_axis: axis with an exponent for each entry, or None for one exponent for the whole weight.
        bits: 1 to 8.
    """

    def __init__(self, weight_shape: tuple[int, ...], channel_axis: int | None, bits: int) -> None:
        super().__init__()
        self.weight_shape = weight_shape
        self.channel_axis = channel_axis
        self.bits = bits

    @abstractmethod
    def initialise(self, weight: Tensor) -> None:
        """Choose the scale from the weight itself."""

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the quantized layer uses it, same shape, differentiable."""

    @abstractmethod
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integers (int64, weight's shape) and exponents (int64, broadcastable to it): ``value = q * 2**-exponent``."""

    @abstractmethod
    def exponents(self) -> Tensor:
        """The exponents alone, int64, broadcastable to the weight."""


class ActivationQuantizer(nn.Module, ABC):
    """Fake-quantizes the tensors of one sharing group: all that meet in a concatenation use one step and one zero point."""

    @abstractmethod
    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Choose step and zero point from observed values: flat float tensors, by the bit width of the tensors they come from."""

    @abstractmethod
    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """The tensor as the integer program stores it, as real values; ``exponent`` is :meth:`current_exponent`, fetched once a step."""

    @abstractmethod
    def log2_step_value(self) -> Tensor:
        """The learned logarithm of the step, a scalar tensor, for fetching all of a network's at once."""

    @abstractmethod
    def format(self, bits: int, exponent: int) -> TensorFormat:
        """The format of a tensor of this group that is ``bits`` wide."""


@dataclass(frozen=True)
class Method:
    """A quantization method as the registry knows it.

    Args:
        name: what users type.
        summary: one line for ``medquant info``.
        exact: whether its result is an exact integer program whenever every layer is quantized.
        weight: class of its weight quantizers.
        activation: class of its activation quantizers.
    """

    name: str
    summary: str
    exact: bool
    weight: type[WeightQuantizer]
    activation: type[ActivationQuantizer]
