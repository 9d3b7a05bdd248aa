"""What a quantized network is made of: latent weights, their quantizers, those of its activations, and the look-ups over them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.quant.batch_norm import live_norm
from medquant.quant.float_tensors import FloatTensors
from medquant.quant.formats import FLOAT_BITS, TensorFormat
from medquant.quant.graph import BatchNorm, Convolution, Graph, Input, Linear
from medquant.quant.methods.base import (
    ActivationQuantizer,
    ActivationSite,
    IntegerActivationQuantizer,
    Method,
    WeightQuantizer,
    WeightSite,
)
from medquant.quant.plan import QuantPlan
from medquant.quant.sharing import find_sharing


class QuantizedLayers(nn.Module):
    """The layers of a network with a quantizer where the plan asks for one; :class:`~medquant.quant.network.QuantNetwork` runs them.

    Args:
        graph: simplified network (:func:`medquant.quant.fold.simplify`).
        plan: resolved bits of its layers.
        method: where the quantizers come from.

    Raises:
        ConfigError: a step must be shared by tensors of which some are float and some are not, or the method has no such width.
    """

    def __init__(self, graph: Graph, plan: QuantPlan, method: Method) -> None:
        super().__init__()
        method.check(plan)
        self.graph, self.plan, self.method = graph, plan, method
        self.controller = method.controller()
        self.sharing = find_sharing(graph)
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.weight_quantizers, self.activation_quantizers = nn.ModuleDict(), nn.ModuleDict()
        self.norms = nn.ModuleDict()
        for operation in graph:
            if isinstance(operation, Convolution):
                self._add_convolution(operation)
            elif isinstance(operation, BatchNorm):
                self.norms[layer_key(operation.name)] = live_norm(operation)
            if isinstance(operation, Linear):
                self._add_linear(operation)
        self.float_tensors = FloatTensors(graph)
        self._add_activation_quantizers()

    # --- construction -------------------------------------------------------------------------------------------

    def _add_convolution(self, operation: Convolution) -> None:
        key, layer = layer_key(operation.name), self.plan[operation.name]
        self.weights[key] = nn.Parameter(operation.weight.detach().clone().float())
        bias = torch.zeros(operation.out_channels) if operation.bias is None else operation.bias.detach().clone().float()
        self.biases[key] = nn.Parameter(bias)
        if layer.weight_bits not in (None, FLOAT_BITS):
            # The last layer's accumulators are compared with each other, so its channels share one exponent. A grouped
            # transposed weight has no axis that runs over all output channels: one exponent there too.
            geometry = operation.geometry
            single = operation.name == self.graph.output or (geometry.transposed and geometry.groups > 1)
            axis = None if single else geometry.channel_axis
            groups = geometry.groups if geometry.transposed else 1
            shape, bits = tuple(operation.weight.shape), int(layer.weight_bits or 0)
            site = WeightSite(operation.name, shape, axis, bits, geometry.channel_axis, layer.activation_bits, groups)
            self.weight_quantizers[key] = self.method.weight(site)

    def _add_linear(self, operation: Linear) -> None:
        key, bits = layer_key(operation.name), self.plan[operation.name].weight_bits
        self.weights[key] = nn.Parameter(operation.weight.detach().clone().float())
        bias = torch.zeros(operation.out_channels) if operation.bias is None else operation.bias.detach().clone().float()
        self.biases[key] = nn.Parameter(bias)
        if bits not in (None, FLOAT_BITS):
            self.weight_quantizers[key] = self.method.weight(WeightSite(operation.name, tuple(operation.weight.shape), 0, int(bits or 0)))

    def _add_activation_quantizers(self) -> None:
        members: dict[str, list[str]] = {}
        for site, group in self.sharing.group.items():
            members.setdefault(group, []).append(site)
        for group, sites in members.items():
            quantized = [site for site in sites if self.activation_bits(site) is not None]
            if not quantized:
                continue
            floats = [site for site in sites if self.plan[site].activation_bits == FLOAT_BITS]
            # Without an integer program to come there is nothing for the joined integers to agree on.
            if floats and self.method.exact:
                raise ConfigError(
                    f"{', '.join(floats)} write float and {', '.join(quantized)} integers, but they meet in a concatenation; "
                    "give all of them activation bits, or all of them 32"
                )
            is_image = all(isinstance(self.graph[site], Input) for site in sites)
            widths = tuple(sorted({int(self.activation_bits(site) or 0) for site in quantized}))
            quantizer = self.method.activation(ActivationSite(group, is_image, group in self.sharing.signed, widths))
            if is_image:
                # The image's values do not change while the network learns, and the gradient with respect to a
                # one-channel image costs as much as several other layers: its step stays as calibrated.
                quantizer.requires_grad_(False)
            self.activation_quantizers[layer_key(group)] = quantizer

    def activation_bits(self, site: str) -> int | None:
        """The width a site writes, None where it is float or accumulators."""
        bits = self.plan[site].activation_bits
        return None if bits in (None, FLOAT_BITS) else bits

    # --- look-ups the lowering and the reports use ----------------------------------------------------------------

    def weight_quantizer(self, name: str) -> WeightQuantizer | None:
        """The weight quantizer of a layer, None where it is float."""
        key = layer_key(name)
        module = self.weight_quantizers[key] if key in self.weight_quantizers else None
        return module if isinstance(module, WeightQuantizer) else None

    def activation_quantizer(self, tensor: str) -> ActivationQuantizer | None:
        """The quantizer whose step and zero point a tensor is read with, None where it is float or accumulators."""
        key = layer_key(self.sharing.group_of(tensor))
        module = self.activation_quantizers[key] if key in self.activation_quantizers else None
        return module if isinstance(module, ActivationQuantizer) else None

    def layer_parameters(self, name: str, in_training: bool = False) -> tuple[Tensor, Tensor]:
        """Latent weight and bias of a convolution; but for training, as the method wants them evaluated."""
        key = layer_key(name)
        weight, bias = self.parameters_of(name)
        if in_training:
            return weight, bias
        return self.controller.evaluated(f"weights/{key}", weight), self.controller.evaluated(f"biases/{key}", bias)

    def parameters_of(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Latent weight and bias of a convolution themselves, for corrections that change them in place."""
        return self.weights[layer_key(name)], self.biases[layer_key(name)]

    def tensor_format(self, tensor: str, exponents: dict[str, int] | None = None) -> TensorFormat | None:
        """The format a tensor is stored in: the widest of the sites it holds, None where it is not quantized."""
        quantizer = self.activation_quantizer(tensor)
        widths = [self.activation_bits(site) for site in self.sharing.sources[tensor]]
        if not isinstance(quantizer, IntegerActivationQuantizer) or any(width is None for width in widths):
            return None
        current = self.exponents() if exponents is None else exponents
        return quantizer.format(max(width for width in widths if width is not None), current[self.sharing.group_of(tensor)])

    def exponents(self) -> dict[str, int]:
        """The current exponent of every activation group, fetched from the device in one go."""
        quantizers = {group: self.activation_quantizer(group) for group in dict.fromkeys(self.sharing.group.values())}
        present = {group: quantizer for group, quantizer in quantizers.items() if isinstance(quantizer, IntegerActivationQuantizer)}
        if not present:
            return {}
        steps = torch.stack([quantizer.log2_step_value().detach() for quantizer in present.values()]).round().tolist()
        return {group: -int(step) for group, step in zip(present, steps, strict=True)}

    def step_parameters(self) -> Iterator[nn.Parameter]:
        """The learned steps, which want a learning rate of their own."""
        for quantizers in (self.weight_quantizers, self.activation_quantizers):
            yield from (parameter for parameter in quantizers.parameters() if parameter.requires_grad)

    def layer_weights(self) -> Iterator[nn.Parameter]:
        """Latent weights and biases, and what layers in float learn."""
        yield from self.weights.parameters()
        yield from self.biases.parameters()
        yield from self.norms.parameters()
        yield from self.float_tensors.parameters()

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Latent weights by layer name."""
        for operation in self.graph:
            if isinstance(operation, Convolution | Linear):
                yield operation.name, self.weights[layer_key(operation.name)]

    def bias(self, name: str) -> nn.Parameter:
        """Latent bias of a convolution."""
        bias: nn.Parameter = self.biases[layer_key(name)]
        return bias

    def weight_rates(self, optimizer: str) -> Iterator[tuple[nn.Parameter, float]]:
        """Latent weights of quantized layers with their learning rate relative to the others; ``optimizer`` is adamw or sgd."""
        for name, weight in self.named_weights():
            quantizer = self.weight_quantizer(name)
            if quantizer is not None:
                yield weight, self.method.learning_rate_scale(quantizer.site, optimizer)


def layer_key(name: str) -> str:
    """Layer name as a parameter key; torch allows no dots in those."""
    return name.replace(".", "/")
