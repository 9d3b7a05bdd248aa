"""``dynamic_fixed_point``: training with low precision multiplications (Courbariaux et al., 2014), forward, backward and stored.

Weights, biases, weighted sums, what layers write, and the gradients of all four are rounded, each with a range of its own that
follows how often values leave it; parameters are stored with more bits than they are multiplied with. Widths count the sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from medquant.config.schema import Section
from medquant.errors import ConfigError
from medquant.quant.dynamic_fixed_point import (
    NumberFormat,
    NumberKind,
    PropagatedTensor,
    StoredParameter,
    adapt_ranges,
    forget_overflows,
    search_ranges,
)
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.methods.base import ActivationQuantizer, ActivationSite, Controller, Method, WeightQuantizer, WeightSite

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork
    from medquant.quant.plan import QuantPlan

_PAPER_PROPAGATION_BITS = 10
_WIDEST_PLANNED = 8
_WIDTH = Annotated[int, Field(ge=3, le=24)]


class DynamicFixedPointOptions(Section):
    """Options of ``dynamic_fixed_point``. Every width counts the sign: 10 bits are a sign and 9 bits."""

    format: NumberKind = Field(
        default="dynamic", description="dynamic: ranges follow the values; fixed: all stay as started; half: IEEE 16 bits; float: as it is"
    )
    propagation_bits: _WIDTH | None = Field(
        default=None, description="width of all that is multiplied, sign included; none: the layers' own bits, 10 for gradients"
    )
    update_bits: _WIDTH = Field(default=12, description="width parameters are stored with between steps, sign included")
    r_max: float = Field(default=1e-4, ge=0, lt=1, description="rate of overflows above which a range doubles")
    period: int = Field(default=100, ge=1, le=1_000_000, description="training steps between two looks at the ranges")
    initial_integer_bits: Annotated[int, Field(ge=-64, le=64)] | Literal["measured"] = Field(
        default="measured", description="where ranges start (the paper: 5); measured: the least that holds the group's first tensor"
    )
    warm_up_batches: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="first steps, at 31 bits and a sign, only to find ranges; then parameters start again",
    )

    def numbers(self, propagation_bits: int) -> NumberFormat:
        """How tensors are rounded that are propagated with these bits."""
        start = None if self.initial_integer_bits == "measured" else self.initial_integer_bits
        if start is None and self.format != "dynamic":
            start = 5  # one range for all, never changed, is a decision; the paper's
        return NumberFormat(self.format, propagation_bits, self.update_bits, self.r_max, start)

    def gradient_bits(self) -> int:
        """Width of gradients."""
        return self.propagation_bits or _PAPER_PROPAGATION_BITS


class DynamicWeight(WeightQuantizer):
    """A layer's six groups: weight, bias, weighted sums, and the gradient of each.

    Args:
        site: the weight.
        options: of the method.
    """

    def __init__(self, site: WeightSite, options: DynamicFixedPointOptions) -> None:
        super().__init__(site)
        fixed_width, gradient_width = options.propagation_bits, options.gradient_bits()
        written = None if site.written_bits in (None, FLOAT_BITS) else site.written_bits
        numbers = options.numbers(fixed_width or self.bits)
        self.stored_weight = StoredParameter(numbers, fixed_width or self.bits, gradient_width)
        # A bias is added to the sums, so it has their width; those of the last layer are compared as they are.
        self.stored_bias = StoredParameter(numbers, fixed_width or written or _PAPER_PROPAGATION_BITS, gradient_width)
        self.weighted_sums = PropagatedTensor(numbers, fixed_width or written, gradient_width)
        if options.warm_up_batches:
            self.register_buffer("first_weight", torch.zeros(site.shape))
            self.register_buffer("first_bias", torch.zeros(site.out_channels))

    def initialise(self, weight: Tensor) -> None:
        """Nothing: ranges are set by the first tensors."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is multiplied."""
        return self.stored_weight(weight)  # type: ignore[no-any-return]

    def bias(self, bias: Tensor) -> Tensor:
        """The bias as it is added."""
        return self.stored_bias(bias)  # type: ignore[no-any-return]

    def sums(self, sums: Tensor) -> Tensor:
        """The weighted sums as they are stored; their gradient is rounded on its way back."""
        return self.weighted_sums(sums)  # type: ignore[no-any-return]


class DynamicActivation(ActivationQuantizer):
    """What is written, and its gradient: two groups for all tensors that meet in a concatenation."""

    def __init__(self, site: ActivationSite, options: DynamicFixedPointOptions) -> None:
        super().__init__()
        self.fixed_width = options.propagation_bits
        width = self.fixed_width or min(site.widths)
        self.written = PropagatedTensor(options.numbers(width), width, options.gradient_bits())

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Nothing: ranges are set by the first tensors."""

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """Rectified where asked for, then rounded."""
        return self.written(torch.relu(x) if relu else x, self.fixed_width or bits)  # type: ignore[no-any-return]


class DynamicController(Controller):
    """Rounds gradients of parameters and the parameters themselves, and looks at the ranges every ``period`` steps."""

    batches: Tensor

    def __init__(self, options: DynamicFixedPointOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def before_step(self, network: QuantNetwork, done: float) -> None:
        """At the very first step, note where parameters start."""
        if not self.options.warm_up_batches:
            return
        taken = int(self.batches)
        search_ranges(network, taken < self.options.warm_up_batches)
        if taken == 0:
            with torch.no_grad():
                for quantizer, weight, bias in _layers(network):
                    quantizer.get_buffer("first_weight").copy_(weight)
                    quantizer.get_buffer("first_bias").copy_(bias)

    def after_backward(self, network: QuantNetwork) -> None:
        """Gradients of weights and biases take their formats."""
        for quantizer, weight, bias in _layers(network):
            quantizer.stored_weight.round_gradient(weight)
            quantizer.stored_bias.round_gradient(bias)

    def after_step(self, network: QuantNetwork) -> None:
        """Parameters take the format they are stored in; ranges follow what they held."""
        for quantizer, weight, bias in _layers(network):
            quantizer.stored_weight.store(weight)
            quantizer.stored_bias.store(bias)
        self.batches += 1
        taken = int(self.batches)
        if taken % self.options.period == 0:
            adapt_ranges(network)
        if taken == self.options.warm_up_batches:
            self._start_again(network)

    def _start_again(self, network: QuantNetwork) -> None:
        with torch.no_grad():
            for quantizer, weight, bias in _layers(network):
                weight.copy_(quantizer.get_buffer("first_weight"))
                bias.copy_(quantizer.get_buffer("first_bias"))
        forget_overflows(network)


class DynamicFixedPoint(Method):
    """Dynamic fixed point and what the paper compares it with."""

    name = "dynamic_fixed_point"
    summary = "forward, backward and update in dynamic fixed point, fixed point or half precision; a simulation"
    options_type = DynamicFixedPointOptions
    options: DynamicFixedPointOptions
    shares_batches = False  # rates of overflow, and the first tensor of a group, are those of a whole batch
    # Two bits are minus one, nought and one: a range that few values leave makes nearly all of them nought.
    weight_bits = frozenset(range(3, 9))
    activation_bits = frozenset(range(3, 9))

    @property
    def exact(self) -> bool:
        """Sums are rounded before the rectifier and what is written once more: two grids, and ends of equal size on both sides."""
        return False

    def check(self, plan: QuantPlan) -> None:
        """Refuse bits the method does not serve, and a width of its own that the plan does not show."""
        super().check(plan)
        own = {"half": 16, "float": 32}.get(self.options.format, self.options.propagation_bits)
        if own is None:
            return
        shown = min(own, _WIDEST_PLANNED)
        for layer in plan.layers:
            for bits in (layer.weight_bits, layer.activation_bits):
                if bits not in (None, FLOAT_BITS, shown):
                    raise ConfigError(
                        f"{layer.name}: {own}-bit propagation stands as {shown} bits in the plan, which goes up to {_WIDEST_PLANNED}; "
                        f"found {bits}; set quant.wbits, quant.abits and quant.edge_bits to {shown}"
                    )

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """Ranges of weight, bias and sums."""
        return DynamicWeight(site, self.options)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """A range for the values and one for their gradient."""
        return DynamicActivation(site, self.options)

    def controller(self) -> Controller:
        """Rounding around a step."""
        return DynamicController(self.options)

    def calibrated(self, network: QuantNetwork, batches: list[Tensor]) -> None:
        """Set the ranges that are measured; those of gradients wait for the first of them."""
        if self.options.format != "dynamic" or self.options.initial_integer_bits != "measured":
            return
        was_training = network.training
        network.train()
        try:
            with torch.no_grad():
                for quantizer, weight, bias in _layers(network):
                    quantizer.stored_weight.watch(weight)
                    quantizer.stored_bias.watch(bias)
                network(batches[0])
        finally:
            network.train(was_training)
        forget_overflows(network)


def _layers(network: QuantNetwork) -> Iterator[tuple[DynamicWeight, Tensor, Tensor]]:
    """The quantized layers: ranges, weight, bias."""
    for name, weight in network.named_weights():
        quantizer = network.weight_quantizer(name)
        if isinstance(quantizer, DynamicWeight):
            yield quantizer, weight, network.bias(name)
