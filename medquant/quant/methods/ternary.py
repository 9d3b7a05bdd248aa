"""``ternary``: weights of three values (TWN; Li et al., arXiv 1605.04711) and the ternary tanh of TernaryNet (arXiv 1801.09449).

By default what TernaryNet computes: real scales, batch norm and interpolation in float. With scales that are powers of two,
folded batch norm and activations in fixed point it is an exact integer program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from medquant.config.schema import Section
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.graph import Graph, Input, Operation, Upsample
from medquant.quant.methods.base import (
    ALL_BITS,
    ActivationQuantizer,
    ActivationSite,
    Controller,
    IntegerWeightQuantizer,
    Method,
    WeightQuantizer,
    WeightSite,
)
from medquant.quant.methods.fixed_point import FixedPointActivation
from medquant.quant.methods.uniform_start import draw_uniform, zero_biases
from medquant.quant.ternary_tanh import ternary_tanh

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork

_THRESHOLD = 0.7
"""Delta over the mean magnitude (Li et al., equation 6)."""

_TERNARY_BITS = 2
"""Stored width of three values."""


class TernaryOptions(Section):
    """Options of ``ternary``."""

    activation: Literal["ternary_tanh", "fixed_point"] = Field(
        default="ternary_tanh",
        description="ternary_tanh: TernaryNet's -1, 0, 1 of 2 bits; fixed_point: learned power-of-two steps of any bits",
    )
    scale: Literal["real", "power_of_two"] = Field(
        default="real", description="alpha of a filter: as the papers have it, or a power of two"
    )
    batch_norm: Literal["live", "folded"] = Field(default="live", description="in float with statistics of each batch, or folded first")
    edges: Literal["float", "quantized"] = Field(
        default="float", description="image and weights of first and last layer; quantized: ternary weights, an image of edge_bits"
    )
    init: Literal["warm_start", "uniform"] = Field(
        default="warm_start",
        description="ternary weights at the start: the warm start's, or U(-1, 1) with biases 0, as the 2019 paper has it",
    )
    beta_start: float = Field(default=3.0, gt=0, le=100, description="slope of the ternary tanh when quantized training begins")
    beta_end: float = Field(default=8.0, gt=0, le=100, description="slope it reaches, linearly, when quantized training ends")


_DEFAULTS = TernaryOptions()


def hard_ternary(x: Tensor) -> Tensor:
    """``sign(x)`` where ``|x| > 0.5``, else 0: the limit of :func:`ternary_tanh`."""
    return torch.sign(x) * (x.abs() > 0.5)


def ternarise(weight: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    """Li et al., equations 5 and 6: threshold ``0.7 mean|W|``, scale the mean magnitude beyond it.

    Args:
        weight: any shape.
        axis: with a threshold and a scale for each entry; None for one over all.

    Returns:
        -1, 0 or 1, shape of ``weight``; the scale, of size one along every other axis, 0 for a filter of zeros.
    """
    magnitude = weight.abs()
    axes = [other for other in range(weight.dim()) if other != axis]
    beyond = magnitude > _THRESHOLD * magnitude.mean(dim=axes, keepdim=True)
    kept = beyond.sum(dim=axes, keepdim=True)
    scale = (magnitude * beyond).sum(dim=axes, keepdim=True) / kept.clamp_min(1)
    return torch.sign(weight) * beyond, scale


class _Replace(torch.autograd.Function):
    """The second tensor in place of the first, which receives the gradient."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _replace(latent: Tensor, value: Tensor) -> Tensor:
    result: Tensor = _Replace.apply(latent, value)  # type: ignore[no-untyped-call]
    return result


class TernaryWeight(WeightQuantizer):
    """-alpha, 0, alpha with a real alpha for each filter, computed from the weight each time."""

    def __init__(self, site: WeightSite, options: TernaryOptions = _DEFAULTS) -> None:
        super().__init__(site)
        self.options = options

    def initialise(self, weight: Tensor) -> None:
        """U(-1, 1) in place where asked for."""
        if self.options.init == "uniform":
            draw_uniform(weight, self.site.name)

    def forward(self, weight: Tensor) -> Tensor:
        """The ternary weight; the gradient passes unchanged."""
        signs, scale = ternarise(weight.detach(), self.site.output_axis)
        return _replace(weight, signs * scale)


class PowerOfTwoTernaryWeight(IntegerWeightQuantizer):
    """The same with alpha rounded, in the logarithm, to a power of two; one for a layer whose channels must agree."""

    exponent: Tensor

    def __init__(self, site: WeightSite, options: TernaryOptions = _DEFAULTS) -> None:
        super().__init__(site)
        self.options = options
        self.register_buffer("exponent", torch.zeros(self.per_channel_shape(), dtype=torch.int64))

    def initialise(self, weight: Tensor) -> None:
        """The exponents of this weight, drawn from U(-1, 1) first where asked for."""
        if self.options.init == "uniform":
            draw_uniform(weight, self.site.name)
        self.integers(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """The ternary weight; the gradient passes unchanged."""
        signs, exponent = self.integers(weight)
        return _replace(weight, signs.to(weight.dtype) * torch.exp2(-exponent.to(weight.dtype)))

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """-1, 0 or 1 and the exponents, which are kept for :meth:`exponents`."""
        signs, scale = ternarise(weight.detach(), self.channel_axis)
        # A filter of zeros has no scale; a step of 1 multiplies nothing.
        self.exponent.copy_(-torch.where(scale > 0, scale, 1.0).log2().round().long())
        return signs.long(), self.exponent.clone()

    def exponents(self) -> Tensor:
        """Those of the weight seen last: of this forward pass."""
        return self.exponent.clone()


class TernaryActivation(ActivationQuantizer):
    """The ternary tanh in training, its limit outside. It takes the rectifier's place: values are signed wherever it stands."""

    beta: Tensor

    def __init__(self, options: TernaryOptions) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(options.beta_start))
        self._beta = options.beta_start  # the buffer's value without a device round trip in every forward pass

    def set_beta(self, beta: float) -> None:
        """The slope from now on."""
        self._beta = beta
        self.beta.fill_(beta)

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Nothing to choose."""

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """-1, 0, 1, or on the way there; ``relu`` makes no difference."""
        return ternary_tanh(x, self._beta) if self.training else hard_ternary(x)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._beta = float(self.beta)


class Annealing(Controller):
    """Raises the slope of every ternary tanh linearly over quantized training.

    Args:
        options: with the slopes at both ends.
    """

    def __init__(self, options: TernaryOptions) -> None:
        super().__init__()
        self.start, self.end = options.beta_start, options.beta_end

    def before_step(self, network: QuantNetwork, done: float) -> None:
        """Set the slope for this step."""
        for quantizer in network.activation_quantizers.values():
            if isinstance(quantizer, TernaryActivation):
                quantizer.set_beta(self.start + (self.end - self.start) * done)


class Ternary(Method):
    """Ternary weights, ternary or fixed-point activations."""

    name = "ternary"
    summary = "TernaryNet: weights -a, 0, a for each filter, ternary tanh; an integer program with powers of two and folded batch norm"
    options_type = TernaryOptions
    options: TernaryOptions
    weight_bits = frozenset({_TERNARY_BITS})

    def __init__(self, options: Mapping[str, object] | None = None) -> None:
        super().__init__(options)
        self.activation_bits = frozenset({_TERNARY_BITS}) if self._has_tanh else ALL_BITS

    @property
    def _has_tanh(self) -> bool:
        return self.options.activation == "ternary_tanh"

    @property
    def exact(self) -> bool:
        """With powers of two for scales, batch norm folded and activations in fixed point."""
        return self.options.scale == "power_of_two" and self.options.batch_norm == "folded" and not self._has_tanh

    @property
    def keeps_batch_norm(self) -> bool:
        """As the option says."""
        return self.options.batch_norm == "live"

    def default_bits(self, site: Operation, graph: Graph, bits: tuple[int, int]) -> tuple[int, int]:
        """Float, with the ternary tanh: what linear up-sampling writes; with float edges: the image, the first and the last weight."""
        weight, activation = bits
        if isinstance(site, Upsample) and site.mode == "linear" and self._has_tanh:
            return weight, FLOAT_BITS
        if isinstance(site, Input):
            # Three values are no image.
            return weight, FLOAT_BITS if self._has_tanh or self.options.edges == "float" else activation
        if site.name in {graph.convolutions[0].name, graph.convolutions[-1].name} and weight != FLOAT_BITS:
            return FLOAT_BITS if self.options.edges == "float" else _TERNARY_BITS, activation
        return bits

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """One scale for each filter."""
        return TernaryWeight(site, self.options) if self.options.scale == "real" else PowerOfTwoTernaryWeight(site, self.options)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """The ternary tanh, or a learned step."""
        return TernaryActivation(self.options) if self._has_tanh else FixedPointActivation()

    def calibrated(self, network: QuantNetwork, batches: list[Tensor]) -> None:
        """Biases of layers whose weights start anew start from zero."""
        if self.options.init == "uniform":
            zero_biases(network)

    def controller(self) -> Controller:
        """The ternary tanh grows steeper."""
        return Annealing(self.options)
