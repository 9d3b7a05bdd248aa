"""``binary``: BinaryConnect (Courbariaux et al., 2015), weights of one bit in training and, if wanted, at test time.

The network propagates with ``±H``; the gradient changes real weights behind them, which are kept in ``[-H, H]``. Batch norm stays
a layer of its own in float, biases are real: the network is a simulation and no integer program.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medquant.config.schema import Section
from medquant.quant.batch_norm import reestimate_batch_norm
from medquant.quant.binarize import binarize, binarize_randomly, glorot_coefficient, glorot_rate, sign
from medquant.quant.calibration import thin_out
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.graph import Convolution, Graph, Operation
from medquant.quant.methods.base import ActivationQuantizer, ActivationSite, Controller, Method, WeightQuantizer, WeightSite
from medquant.quant.methods.fixed_point import FixedPointActivation

if TYPE_CHECKING:
    from medquant.quant.network import QuantNetwork

_UNIFORM_RMS = 3.0**-0.5
"""Root mean square of a uniform distribution over [-1, 1]."""


class BinaryOptions(Section):
    """Options of ``binary``."""

    binarization: Literal["deterministic", "stochastic"] = Field(
        default="deterministic", description="training signs: of the real weight, or drawn with the hard sigmoid of w/H as probability"
    )
    H: Annotated[float, Field(gt=0, le=1e3)] | Literal["glorot"] = Field(
        default=1.0, description="weights are ±H; glorot: sqrt(1.5 / (fan_in + fan_out)) of each layer"
    )
    W_LR_scale: Annotated[float, Field(gt=0, le=1e6)] | Literal["glorot"] = Field(
        default="glorot", description="learning rate of binary weights, as a multiple; glorot: 1/coefficient for adamw, its square for sgd"
    )
    edges: Literal["binary", "float"] = Field(default="binary", description="first and last layer; stands in place of quant.edge_bits")
    init: Literal["warm_start", "uniform"] = Field(
        default="warm_start",
        description="start of the real weights: the warm start's, rescaled to the spread of U(-H, H), or drawn from U(-H, H)",
    )
    test_weights: Literal["auto", "binary", "real", "ensemble"] = Field(
        default="auto", description="weights outside training; auto: binary if deterministic, real if stochastic, as in the paper"
    )
    ensemble: int = Field(default=8, ge=1, le=1000, description="sampled networks that are averaged where test_weights is ensemble")


class BinaryWeight(WeightQuantizer):
    """``±H`` in training; outside it what ``test_weights`` says."""

    def __init__(self, site: WeightSite, options: BinaryOptions) -> None:
        super().__init__(site)
        self.options = options
        self.scale = glorot_coefficient(site.fan_in, site.fan_out) if options.H == "glorot" else float(options.H)
        self.pass_index = 0

    def initialise(self, weight: Tensor) -> None:
        """Put the real weight where training starts: into ``[-H, H]``, in place."""
        if self.options.init == "uniform":
            # From the run's seed and the layer's name alone: calibration is done again where a run was stopped before it was saved.
            draws = torch.rand(weight.shape, generator=self._generator(torch.initial_seed()))
            weight.copy_((2 * draws - 1) * self.scale)
            return
        rms = weight.square().mean().sqrt()
        if bool(rms > 0):
            weight.mul_(self.scale * _UNIFORM_RMS / rms).clamp_(-self.scale, self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """Signs times H, or the real weight outside training where that is asked for."""
        if self.training:
            return binarize_randomly(weight, self.scale) if self.options.binarization == "stochastic" else binarize(weight, self.scale)
        shown = self._test_weights()
        if shown == "ensemble":
            return binarize_randomly(weight, self.scale, self._generator(self.pass_index))
        return weight if shown == "real" else binarize(weight, self.scale)

    def _test_weights(self) -> str:
        if self.options.test_weights != "auto":
            return self.options.test_weights
        return "real" if self.options.binarization == "stochastic" else "binary"

    def _generator(self, number: int) -> torch.Generator:
        """Draws that depend on a number and the layer's name and on nothing that happened before (torch reads 32 bits of a seed)."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.site.name} {number}".encode()))


class BinaryActivation(FixedPointActivation):
    """One bit: the sign, in place of the rectifier. More bits: those of ``fixed_point``."""

    def __init__(self, site: ActivationSite) -> None:
        super().__init__()
        self.signed = site.signed
        if site.widths == (1,):
            self.log2_step.requires_grad_(False)  # a sign has no step

    def initialise(self, samples: dict[int, Tensor], signed: bool) -> None:
        """Step of least squared error of the tensors that have one."""
        stepped = {bits: values for bits, values in samples.items() if bits > 1}
        if stepped:
            super().initialise(stepped, signed)

    def forward(self, x: Tensor, exponent: int, bits: int, relu: bool) -> Tensor:
        """The sign of what the rectifier would read, or the tensor fake-quantized."""
        return sign(x) if bits == 1 else super().forward(x, exponent, bits, relu)


class BinaryController(Controller):
    """Keeps the real weights in ``[-H, H]`` and numbers the sampled networks of an evaluation."""

    def __init__(self, options: BinaryOptions) -> None:
        super().__init__()
        self.passes = options.ensemble if options.test_weights == "ensemble" else 1

    def after_step(self, network: QuantNetwork) -> None:
        """Clip: a real weight beyond H would have no effect but to be long in coming back (section 2.4)."""
        with torch.no_grad():
            for name, weight in network.named_weights():
                quantizer = network.weight_quantizer(name)
                if isinstance(quantizer, BinaryWeight):
                    weight.clamp_(-quantizer.scale, quantizer.scale)

    def evaluation_passes(self) -> int:
        """As many as there are networks to sample."""
        return self.passes

    def before_pass(self, network: QuantNetwork, index: int) -> None:
        """Sampled network ``index`` is the same in every evaluation."""
        for quantizer in network.weight_quantizers.values():
            if isinstance(quantizer, BinaryWeight):
                quantizer.pass_index = index


class Binary(Method):
    """BinaryConnect."""

    name = "binary"
    summary = "BinaryConnect: weights of one bit, batch norm in float, activations float, fixed point or signs; a simulation"
    options_type = BinaryOptions
    options: BinaryOptions
    weight_bits = frozenset({1})

    @property
    def exact(self) -> bool:
        """Batch norm and biases are real numbers."""
        return False

    @property
    def keeps_batch_norm(self) -> bool:
        """Without the statistics of each batch, flipping signs would change the scale of everything behind them."""
        return True

    def default_bits(self, site: Operation, graph: Graph, bits: tuple[int, int]) -> tuple[int, int]:
        """First and last layer are binary like all others, or float."""
        layers = [operation.name for operation in graph if isinstance(operation, Convolution)]
        if site.name not in (layers[0], layers[-1]) or bits[0] == FLOAT_BITS:
            return bits
        return (1 if self.options.edges == "binary" else FLOAT_BITS), bits[1]

    def weight(self, site: WeightSite) -> WeightQuantizer:
        """One H for the layer."""
        return BinaryWeight(site, self.options)

    def activation(self, site: ActivationSite) -> ActivationQuantizer:
        """Signs, or the steps of ``fixed_point``."""
        return BinaryActivation(site)

    def controller(self) -> Controller:
        """Clipping after each step."""
        return BinaryController(self.options)

    def learning_rate_scale(self, site: WeightSite, optimizer: str) -> float:
        """``W_LR_scale``."""
        if self.options.W_LR_scale != "glorot":
            return float(self.options.W_LR_scale)
        return glorot_rate(site.fan_in, site.fan_out, squared=optimizer == "sgd")

    def calibrated(self, network: QuantNetwork, batches: list[Tensor]) -> None:
        """Measure activations and batch norm statistics again, now that every weight is as large as its neighbours."""
        remeasure(network, batches)


def remeasure(network: QuantNetwork, batches: list[Tensor]) -> None:
    """Steps of activations and statistics of batch norm with the weights that calibration has rescaled.

    Args:
        network: as calibrated on the float network; left in the mode it was in.
        batches: training images, each (N, C, *S).
    """
    seen: dict[str, dict[int, list[Tensor]]] = {}

    def observe(key: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, int, int, bool], written: Tensor) -> Tensor:
            x, _, bits, relu = inputs
            x = torch.relu(x) if relu and bits > 1 else x
            seen.setdefault(key, {}).setdefault(bits, []).append(thin_out(x))
            return written if bits == 1 else x

        return hook

    hooks = [module.register_forward_hook(observe(key)) for key, module in network.activation_quantizers.items()]  # type: ignore[arg-type]
    was_training = network.training
    network.eval()
    try:
        if len(network.norms):
            reestimate_batch_norm(network, batches)
        else:
            with torch.no_grad():
                for images in batches:
                    network(images)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    for key, samples in seen.items():
        quantizer = network.activation_quantizers[key]
        if isinstance(quantizer, BinaryActivation):
            quantizer.initialise({bits: torch.cat(parts) for bits, parts in samples.items()}, quantizer.signed)
