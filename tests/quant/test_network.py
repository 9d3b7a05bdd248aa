"""The trainable network: what it refuses, what calibration sees, and that it computes the float network where nothing is quantized."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.bits import parse_rules
from medquant.errors import ConfigError
from medquant.quant.calibration import search_weight_exponents
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.formats import TensorFormat
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import ConvolutionNode, ImageNode


class Skip(nn.Module):
    """One skip connection, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        logits: Tensor = self.head(torch.cat([first, F.relu(self.second(first))], 1))
        return logits


def quantized(module: nn.Module, wbits: int, abits: int, *rules: str, edge_bits: int = 8) -> QuantNetwork:
    graph = simplify(capture(module.eval(), torch.zeros(1, 1, 8, 8)))
    return QuantNetwork(graph, resolve_plan(graph, wbits, abits, edge_bits, parse_rules(rules)), get_method("fixed_point"))


def test_all_float_is_the_float_network() -> None:
    torch.manual_seed(0)
    module, x = Skip(), torch.randn(2, 1, 8, 8)
    network = quantized(module, 32, 32)
    assert list(network.step_parameters()) == []
    assert torch.equal(network(x), module(x))


def test_float_and_integers_may_not_meet_in_a_concatenation() -> None:
    with pytest.raises(ConfigError, match="second write float and first integers, but they meet in a concatenation"):
        quantized(Skip(), 4, 6, "second=/32")


def test_calibration_needs_images_and_finite_values() -> None:
    network = quantized(Skip(), 4, 6)
    with pytest.raises(ConfigError, match="at least one batch"):
        network.calibrate([])
    with pytest.raises(ConfigError, match="not finite"):
        network.calibrate([torch.full((1, 1, 8, 8), float("nan"))])
    network.calibrate([torch.randn(1, 1, 8, 8)])  # and is usable afterwards


def test_formats_after_calibration_by_hand() -> None:
    # Weights of one tap make every tensor a multiple of the image, so the formats can be written down.
    module = Skip()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        module.first.weight[:, 0, 1, 1] = torch.tensor([1.0, 2.0, -1.0])
        module.second.weight[0, 1, 1, 1] = 4.0
        module.head.weight[0, 0] = 0.5
    image = torch.arange(64.0).reshape(1, 1, 8, 8) / 64 - 0.5
    network = quantized(module, 4, 6, "first=/4")
    network.calibrate([image])
    # Image: multiples of 1/64 from -1/2. The search starts where the levels span -1 .. 1 (steps of 1/128); that is exact.
    assert network.tensor_format("input") == TensorFormat(8, 128, 7)
    # first (4 bits, up to 2 · 31/64) and second (6 bits, up to 4 · 62/64 = 3.875) share a step; the join has the wider width.
    shared = network.tensor_format("first")
    joined = network.tensor_format("concat")
    assert shared is not None
    assert joined is not None
    assert (shared.bits, joined.bits) == (4, 6)
    assert (shared.zero_point, joined.zero_point) == (0, 0)
    assert shared.exponent == joined.exponent
    assert network.tensor_format("head") is None
    quantizer = network.weight_quantizer("first")
    assert quantizer is not None
    # The first layer has 8-bit weights, -128 .. 127: the coarsest steps that hold 1, 2 and -1 are 1/64, 1/32 and 1/64.
    assert quantizer.integers(module.first.weight)[0][:, 0, 1, 1].tolist() == [64, 64, -64]
    head = network.weight_quantizer("head")
    assert head is not None
    assert head.exponents().numel() == 1  # accumulators of the last layer are compared with each other


def test_step_of_the_image_is_not_trained_unless_it_joins_others() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.cat([x, self.a(x)], 1))
            return y

    assert len(list(quantized(Skip(), 4, 6).step_parameters())) == 3 + 1
    assert len(list(quantized(Late(), 4, 6).step_parameters())) == 2 + 1


def test_lowered_integers_by_hand() -> None:
    module = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.75, -1.5]).reshape(2, 1, 1, 1))
        module.bias.copy_(torch.tensor([0.4, -2.0]))  # type: ignore[union-attr]
    graph = simplify(capture(module, torch.zeros(1, 1, 4, 4)))
    network = QuantNetwork(graph, resolve_plan(graph, 4, 6, 4), get_method("fixed_point"))
    network.calibrate([torch.linspace(-4, 3.5, 16).reshape(1, 1, 4, 4)])
    program = lower(network)
    image, conv = program.nodes
    assert isinstance(image, ImageNode)
    assert isinstance(conv, ConvolutionNode)
    # Sixteen values in steps of 1/2 from -4: 4 bits, exponent 1, zero at level 8.
    assert image.output == TensorFormat(4, 8, 1)
    # One exponent for both channels; 0.75 and -1.5 are exact in steps of 1/4 (3 and -6), not in coarser ones.
    assert conv.weight.flatten().tolist() == [3, -6]
    assert conv.weight_exponents.tolist() == [2, 2]
    # Accumulators in steps of 2^-(2 + 1): 0.4 · 8 = 3.2 and -2 · 8.
    assert conv.bias.tolist() == [3, -16]
    assert (conv.output, conv.weight_bits, program.output_exponents) == (None, 4, (3, 3))


def test_accumulators_beyond_32_bits_are_refused() -> None:
    module = nn.Conv2d(1, 1, 1)
    network = quantized(module, 8, 8)
    network.calibrate([torch.randn(1, 1, 8, 8)])
    with torch.no_grad():
        network.layer_parameters(network.graph.output)[1].fill_(1e9)
    with pytest.raises(ConfigError, match="do not fit 32 bits"):
        lower(network)


def test_dead_channels_and_layers_stay_within_32_bits() -> None:
    # A channel without weights but with a bias, and a tensor that is zero on all calibration images, are no reason to fail.
    torch.manual_seed(0)
    module = Skip()
    with torch.no_grad():
        module.first.weight[0] = 0
        module.first.weight[1] *= 1e-9
        module.first.bias.fill_(30.0)  # type: ignore[union-attr]
        module.second.bias.fill_(-1000.0)  # type: ignore[union-attr]
        module.head.bias.fill_(30.0)  # type: ignore[union-attr]
    network = quantized(module, 8, 8)
    network.calibrate([torch.randn(1, 1, 8, 8)])
    assert lower(network).output_exponents


class Tokens(nn.Module):
    """A convolution, and a linear layer over its channels that nothing quantizes the output of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(1, 4, 1), nn.Linear(4, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(F.relu(self.conv(x)).movedim(1, -1)).movedim(-1, 1))
        return logits


def test_linear_layers_have_quantized_weights_and_real_values() -> None:
    network = quantized(Tokens(), 3, 32)
    network.calibrate([torch.randn(2, 1, 8, 8)])
    weight, bias = network.layer_parameters("mix")
    quantizer = network.weight_quantizer("mix")
    assert quantizer is not None
    # Steps start where the search over each output's weights puts them, as those of convolutions do.
    assert torch.equal(quantizer.exponents().flatten(), search_weight_exponents(weight, 0, 3).flatten())
    integers, exponents = quantizer.integers(weight)
    assert int(integers.abs().max()) <= 4
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        first = F.relu(
            F.conv2d(x, network.eval().weight_quantizer("conv")(network.layer_parameters("conv")[0]), network.layer_parameters("conv")[1])
        )
        mixed = F.linear(first.movedim(1, -1), integers * torch.exp2(-exponents.float()), bias).movedim(-1, 1)
        head = network.weight_quantizer("head")(network.layer_parameters("head")[0])
        torch.testing.assert_close(network(x), F.conv2d(mixed, head, network.layer_parameters("head")[1]))
