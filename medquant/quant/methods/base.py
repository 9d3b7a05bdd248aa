"""What a quantization method provides: quantizers for weights and activations, and what it does around a training step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medquant.config.options import describe_options
from medquant.config.schema import Section
from medquant.errors import ConfigError
from medquant.quant.formats import FLOAT_BITS, TensorFormat

if TYPE_CHECKING:
    from medquant.quant.graph import Graph, Operation
    from medquant.quant.network import QuantNetwork
    from medquant.quant.plan import LayerPlan, QuantPlan

ALL_BITS = frozenset(range(1, 9))


@dataclass(frozen=True)
class WeightSite:
    """A weight that wants a quantizer.

    Args:
        name: layer name.
        shape: shape of the weight, (O, I / groups, *K), or (I, O / groups, *K) where transposed.
        channel_axis: axis with a scale for each entry, or None for one scale for the whole weight.
        bits: 1 to 8.
        output_axis: axis that runs over output channels; unlike ``channel_axis`` never None.
        written_bits: width of what the layer writes, 1 to 8, 32 for float, None for the accumulators of the last layer.
        groups: groups of a transposed convolution, whose weight's shape does not tell them; 1 for others.
    """

    name: str
    shape: tuple[int, ...]
    channel_axis: int | None
    bits: int
    output_axis: int = 0
    written_bits: int | None = None
    groups: int = 1

    @property
    def out_channels(self) -> int:
        """Output channels of the layer, as many as it has biases."""
        return self.shape[self.output_axis] * self.groups

    @property
    def fan_in(self) -> int:
        """Inputs of one output value: the weight's input channels times its voxels."""
        return math.prod(self.shape) // self.shape[self.output_axis]

    @property
    def fan_out(self) -> int:
        """Output channels times the weight's voxels."""
        return self.shape[self.output_axis] * math.prod(self.shape[2:])


@dataclass(frozen=True)
class ActivationSite:
    """A group of tensors that share a quantizer because they meet in a concatenation.

    Args:
        name: the group's name, that of its first tensor.
        is_image: whether it is the image and nothing else.
        signed: whether some of its tensors hold negative values.
        widths: the widths of its tensors, each once, ascending.
    """

    name: str
    is_image: bool
    signed: bool
    widths: tuple[int, ...] = ()


class WeightQuantizer(nn.Module, ABC):
    """Fake-quantizes the weight of one layer.

    Args:
        site: the weight.
    """

    def __init__(self, site: WeightSite) -> None:
        super().__init__()
        self.site = site
        self.channel_axis, self.bits = site.channel_axis, site.bits

    @abstractmethod
    def initialise(self, weight: Tensor) -> None:
        """Choose the scale from the weight itself, a leaf that may be changed in place (without gradients)."""

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the quantized layer uses it, same shape, differentiable."""

    def bias(self, bias: Tensor) -> Tensor:
        """The layer's bias as it is added, (O,), differentiable; on the accumulators' grid an exact network rounds it afterwards."""
        return bias

    def sums(self, sums: Tensor) -> Tensor:
        """What the layer's weighted sums, (N, O, *S), become before anything else; an exact method leaves them as they are."""
        return sums

    def per_channel_shape(self) -> list[int]:
        """Shape of a tensor with one entry for each scale, broadcastable to the weight."""
        return [length if axis == self.channel_axis else 1 for axis, length in enumerate(self.site.shape)]


class IntegerWeightQuantizer(WeightQuantizer):
    """A quantizer whose values are integers times powers of two, as an integer program needs them."""

    @abstractmethod
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integers (int64, weight's shape) and exponents (int64, broadcastable to it): ``value = q * 2**-exponent``."""

    @abstractmethod
    def exponents(self) -> Tensor:
        """The exponents alone, int64, broadcastable to the weight."""


class ActivationQuantizer(nn.Module, ABC):
    """Fake-quantizes the tensors of one sharing group: all that meet in a concatenation use one scale and one zero point."""

    @abstractmethod
    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Choose the scale from observed values: flat float tensors, by the bit width of the tensors they come from."""

    @abstractmethod
    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """The tensor as it is stored, as real values, rectified first where ``relu``.

        ``exponent`` is that of an :class:`IntegerActivationQuantizer`, fetched once a step for the whole network; 0 for others.
        """


class IntegerActivationQuantizer(ActivationQuantizer):
    """A quantizer whose values are integers times a power of two, as an integer program needs them."""

    @abstractmethod
    def log2_step_value(self) -> Tensor:
        """The logarithm of the step, a scalar tensor, for fetching all of a network's at once."""

    @abstractmethod
    def format(self, bits: int, exponent: int) -> TensorFormat:
        """The format of a tensor of this group that is ``bits`` wide."""


class Controller(nn.Module):
    """What a method does around a training step. Its buffers are saved with the network, so that a resumed run goes on as it was.

    Every part is optional; this class does nothing.
    """

    def prepare(self, network: QuantNetwork) -> None:
        """Once, when the network is built: the place for buffers that have its shapes."""

    def before_step(self, network: QuantNetwork, done: float) -> None:
        """Before the forward pass; ``done`` is the share of quantized training that lies behind, in [0, 1)."""

    def after_backward(self, network: QuantNetwork) -> None:
        """The gradients are there, clipped, and the optimiser has not used them."""

    def after_step(self, network: QuantNetwork) -> None:
        """The optimiser has changed the weights."""

    def evaluated(self, key: str, parameter: Tensor) -> Tensor:
        """What stands for a latent weight or bias outside training; ``key`` is ``weights/NAME`` or ``biases/NAME``."""
        return parameter

    def evaluation_passes(self) -> int:
        """How many forward passes an evaluation averages."""
        return 1

    def before_pass(self, network: QuantNetwork, index: int) -> None:
        """Outside training, before forward pass ``index`` of those that are averaged; the place to choose its random numbers."""


class NoOptions(Section):
    """For methods without options."""


class Method(ABC):
    """A quantization method: a subclass in a file of its own, and one line in the registry.

    Args:
        options: values of ``quant.options``.

    Raises:
        ConfigError: an option that the method does not have, or a value it cannot take; all mistakes at once.
    """

    name: ClassVar[str]
    """What users type."""
    summary: ClassVar[str]
    """One line for ``medquant info``."""
    options: Section
    options_type: ClassVar[type[Section]] = NoOptions
    """Fields of ``quant.options``, each with a description."""
    weight_bits: frozenset[int] = ALL_BITS
    """Widths of weights it can serve, which may depend on options; 32 (float) is always possible."""
    activation_bits: frozenset[int] = ALL_BITS
    """Widths of activations likewise."""
    learns: ClassVar[bool] = True
    """False for methods that calibrate a trained float network and train nothing."""

    shares_batches: ClassVar[bool] = True
    """False for methods that measure whole batches as they train, which several processes cannot do each for itself."""

    def __init__(self, options: Mapping[str, object] | None = None) -> None:
        try:
            self.options = self.options_type.model_validate(dict(options or {}))
        except ValidationError as error:
            raise ConfigError(*describe_options(error, self.name, self.options_type)) from error

    @property
    def exact(self) -> bool:
        """Whether a network whose every layer is quantized is an exact integer program."""
        return True

    @property
    def keeps_batch_norm(self) -> bool:
        """Whether batch norm stays a layer of its own, in float, with statistics of each batch in training; otherwise it is folded."""
        return False

    def default_bits(self, site: Operation, graph: Graph, bits: tuple[int, int]) -> tuple[int, int]:
        """Bits (weight, activation) of a layer no rule speaks of, given those it would have; the place for what a paper leaves float."""
        return bits

    def check(self, plan: QuantPlan) -> None:
        """Refuse a plan this method cannot serve, before any work is done.

        Raises:
            ConfigError: a layer has a width the method does not know; names the first such layer.
        """
        for layer in plan.layers:
            self._check_bits(layer, "weights", layer.weight_bits, self.weight_bits)
            self._check_bits(layer, "activations", layer.activation_bits, self.activation_bits)

    def _check_bits(self, layer: LayerPlan, what: str, bits: int | None, known: frozenset[int]) -> None:
        if bits not in (None, FLOAT_BITS) and bits not in known:
            can = ", ".join(map(str, sorted(known)))
            raise ConfigError(f"{layer.name}: method {self.name} has {what} of {can} or 32 bits; found {bits}; change bits or method")

    def stored(self, plan: QuantPlan) -> QuantPlan:
        """The plan with the widths values need in memory, where a method's bits are not all of them (a sign not counted)."""
        return plan

    @abstractmethod
    def weight(self, site: WeightSite) -> WeightQuantizer:
        """A new quantizer for a weight."""

    @abstractmethod
    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """A new quantizer for a group of tensors."""

    def controller(self) -> Controller:
        """What happens around a training step."""
        return Controller()

    def learning_rate_scale(self, site: WeightSite, optimizer: str) -> float:
        """Learning rate of a quantized layer's weight relative to the others."""
        return 1.0

    def shared_step_scale(self, processes: int) -> float:
        """What the summed gradients of activation steps are multiplied with where each process held an equal part of the batch.

        Other than 1 where a gradient is scaled by the number of values in the batch.
        """
        return 1.0

    def before_calibration(self, network: QuantNetwork) -> None:  # noqa: B027
        """Before any range is measured: changes to the weights that leave the float network's function as it is."""

    def calibrated(self, network: QuantNetwork, batches: list[Tensor]) -> None:  # noqa: B027
        """After every quantizer was initialised: corrections from the same training images, each (N, C, *S)."""


def observed_bits(samples: dict[int, Tensor]) -> int:
    """The narrowest width in a group: what its scale must suit."""
    return min(samples)


def joined(samples: dict[int, Tensor]) -> Tensor:
    """All observed values of a group, flat, float32."""
    return torch.cat([values.detach().float().flatten() for values in samples.values()])
