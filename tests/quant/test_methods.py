"""What every quantization method in the registry must do; a new method inherits all of it by its registry line."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.bits import parse_rules
from medquant.errors import ConfigError
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.lower import lower
from medquant.quant.methods import METHODS, get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan

every_method = pytest.mark.parametrize("method", METHODS)


class Small(nn.Module):
    """A strided, a transposed and a plain convolution, a signed and an unsigned tensor that meet, linear up-sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.linear = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        below = F.relu(self.norm(self.down(x)))
        logits: Tensor = self.head(torch.cat([self.up(below), self.linear(below)], 1))
        return logits


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return simplify(capture(Small().eval(), torch.zeros(1, 2, 8, 8)))


def network(graph: Graph, method: str, wbits: int, abits: int, rules: tuple[str, ...] = ()) -> QuantNetwork:
    return QuantNetwork(graph, resolve_plan(graph, wbits, abits, wbits, parse_rules(rules)), get_method(method))


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


@every_method
@pytest.mark.parametrize("bits", range(1, 9))
def test_gradients_reach_every_parameter(graph: Graph, method: str, bits: int) -> None:
    net = network(graph, method, bits, bits)
    net.calibrate([images()])
    net.train()
    steps = list(net.step_parameters())
    # One for each of three weights, and for the activation groups: down; up and linear joined. The image's stays as calibrated.
    assert len(steps) == 3 + 2
    output = net(images(2))
    assert output.shape == (2, 3, 8, 8)
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    for parameter in [*steps, *net.layer_weights()]:
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        assert bool((parameter.grad != 0).any())


@every_method
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_saved_state_gives_the_same_output_bit_for_bit(graph: Graph, method: str, bits: int) -> None:
    net = network(graph, method, bits, bits)
    net.calibrate([images() - 0.4])
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    net(images(2)).square().mean().backward()
    optimiser.step()
    net.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert any(name.endswith("zero_point") and int(value) != 0 for name, value in state.items())
    again = network(graph, method, bits, bits).eval()
    with torch.no_grad():
        assert not torch.equal(again(images(3)), net(images(3)))
        again.load_state_dict(state)
        assert torch.equal(again(images(3)), net(images(3)))
    # And the same integers: the formats (zero points too) come from the state, not from the object that was calibrated.
    first, second = lower(net), lower(again)
    assert [node.output for node in first] == [node.output for node in second]


@every_method
def test_integers_are_what_the_simulation_multiplies_with(graph: Graph, method: str) -> None:
    for bits in range(1, 9):
        net = network(graph, method, bits, 4)
        net.calibrate([images()])
        for name in ("down", "up", "head"):
            quantizer = net.weight_quantizer(name)
            assert quantizer is not None
            weight = net.layer_parameters(name)[0].detach()
            integers, exponents = quantizer.integers(weight)
            low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            assert low <= int(integers.min()) <= int(integers.max()) <= high
            assert torch.equal(exponents, quantizer.exponents())
            assert torch.equal(integers.double() * 2.0 ** -exponents.double(), quantizer(weight).detach().double())


@every_method
@pytest.mark.parametrize("rule", ["down=32/", "up=/32", "head=32/"])
def test_float_layers_are_no_integer_program(graph: Graph, method: str, rule: str) -> None:
    rules = (rule, "linear=/32") if rule == "up=/32" else (rule,)
    net = network(graph, method, 4, 6, rules)
    net.calibrate([images()])
    with pytest.raises(ConfigError, match=f"{rule.split('=')[0]}.* compute in float"):
        lower(net)
    assert net(images()).shape == (2, 3, 8, 8)  # but it trains and runs


def test_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown quantization method 'fixd_point' \(did you mean 'fixed_point'\?\); known: "):
        get_method("fixd_point")
