"""What every quantization method in the registry must do; a new method inherits all of it by its registry line."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.bits import parse_rules
from medquant.deploy.agreement import check_agreement
from medquant.errors import ConfigError
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import Graph
from medquant.quant.lower import lower
from medquant.quant.methods import METHODS, get_method
from medquant.quant.methods.base import IntegerWeightQuantizer
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in METHODS},
    "LSQ+": ("learned_step", {"variant": "lsq_plus", "per_channel": True}),
    "ternary, exact": ("ternary", {"scale": "power_of_two", "batch_norm": "folded", "activation": "fixed_point", "edges": "quantized"}),
}
"""Every method as it comes, and with options that make another method of it: its name and the options."""

every_method = pytest.mark.parametrize("method", VARIANTS)
both_axes = pytest.mark.parametrize("axes", [2, 3])


class Small(nn.Module):
    """A strided, a transposed and a plain convolution, a signed and an unsigned tensor that meet, linear up-sampling."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv, transposed, norm = (
            (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)
        )
        self.down = conv(2, 6, 3, stride=2, padding=1)
        self.norm = norm(6)
        self.up = transposed(6, 4, 2, stride=2)
        self.linear = nn.Upsample(scale_factor=2, mode="bilinear" if axes == 2 else "trilinear")
        self.head = conv(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        below = F.relu(self.norm(self.down(x)))
        logits: Tensor = self.head(torch.cat([self.up(below), self.linear(below)], 1))
        return logits


@cache
def captured(axes: int) -> Graph:
    torch.manual_seed(0)
    return capture(Small(axes).eval(), torch.zeros(1, 2, *[8] * axes))


def network(method: str, wbits: int, abits: int, axes: int = 2, rules: tuple[str, ...] = ()) -> QuantNetwork | None:
    """None where the method declares that it cannot serve these bits; then it must refuse them by name before any work."""
    name, options = VARIANTS[method]
    chosen = get_method(name, options)
    graph = simplify(captured(axes), chosen.keeps_batch_norm)
    plan = resolve_plan(graph, wbits, abits, min(wbits, 8), parse_rules(rules), chosen.default_bits)
    known = all(
        bits in (None, 32) or bits in served
        for layer in plan.layers
        for bits, served in ((layer.weight_bits, chosen.weight_bits), (layer.activation_bits, chosen.activation_bits))
    )
    if known:
        return QuantNetwork(graph, plan, chosen)
    with pytest.raises(ConfigError, match=f"method {name} has (weights|activations) of"):
        QuantNetwork(graph, plan, chosen)
    return None


def images(seed: int = 1, axes: int = 2) -> Tensor:
    return torch.randn(2, 2, *[8] * axes, generator=torch.Generator().manual_seed(seed))


def train_step(net: QuantNetwork, optimiser: torch.optim.Optimizer, seed: int) -> None:
    net.train()
    net.before_step(0.1 * seed)
    net(images(seed)).square().mean().backward()
    net.after_backward()
    optimiser.step()
    net.after_step()
    optimiser.zero_grad()


@every_method
@both_axes
@pytest.mark.parametrize("bits", range(1, 9))
def test_gradients_reach_every_parameter(method: str, bits: int, axes: int) -> None:
    net = network(method, bits, bits, axes)
    if net is None:
        return
    net.calibrate([images(1, axes)])
    net.train()
    net.before_step(0.0)
    output = net(images(2, axes))
    assert output.shape == (2, 3, *[8] * axes)
    (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
    for parameter in [*net.step_parameters(), *net.layer_weights()]:
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
    # Latent weights learn in every layer, steps in every quantizer (but for what batch norm cancels, and the image's).
    for name, weight in net.named_weights():
        assert weight.grad is not None
        assert bool((weight.grad != 0).any()), name
    # LSQ+'s offset learns from values that are clipped (its equation 8), and its start holds all of them.
    offsets = {id(parameter) for key, parameter in net.named_parameters() if key.endswith(".offset")}
    for parameter in net.step_parameters():
        assert parameter.grad is not None
        assert id(parameter) in offsets or bool((parameter.grad != 0).any())


def test_fixed_point_learns_a_step_for_each_channel_and_group() -> None:
    net = network("fixed_point", 4, 6)
    assert net is not None
    # Three weights; the activation groups down, and up and linear joined. The image's step stays as calibrated.
    assert len(list(net.step_parameters())) == 3 + 2


@every_method
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_saved_state_gives_the_same_output_bit_for_bit(method: str, bits: int) -> None:
    net = network(method, bits, bits)
    if net is None:
        return
    net.calibrate([images() - 0.4])
    optimiser = torch.optim.SGD(net.parameters(), 0.01)
    for seed in (2, 3):
        train_step(net, optimiser, seed)
    net.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    again = network(method, bits, bits)
    assert again is not None
    again.eval()
    with torch.no_grad():
        torch.manual_seed(5)
        expected = net(images(3))
        assert not torch.equal(again(images(3)), expected)
        again.load_state_dict(state)
        torch.manual_seed(5)
        assert torch.equal(again(images(3)), expected)
    if method == "fixed_point":
        assert any(name.endswith("zero_point") and int(value) != 0 for name, value in state.items())
    if net.method.exact and net.plan.is_integer:
        # And the same integers: the formats (zero points too) come from the state, not from the object that was calibrated.
        assert [node.output for node in lower(net)] == [node.output for node in lower(again)]


@every_method
@both_axes
def test_an_exact_method_is_its_integer_program_and_any_other_says_so(method: str, axes: int) -> None:
    for bits in range(1, 9):
        net = network(method, bits, bits, axes)
        if net is None:
            continue
        net.calibrate([images(1, axes)])
        net.eval()
        if not net.method.exact:
            with pytest.raises(ConfigError, match=f"not an integer program: method {VARIANTS[method][0]}"):
                lower(net)
            continue
        if not net.plan.is_integer:
            with pytest.raises(ConfigError, match=r"not an integer program: .* compute in float"):
                lower(net)
            continue
        agreement = check_agreement(net, lower(net), images(2, axes).numpy())
        assert agreement.checked == 2 * 3 * 8**axes
        assert agreement.differing == 0


@every_method
def test_integers_are_what_the_simulation_multiplies_with(method: str) -> None:
    for bits in range(1, 9):
        net = network(method, bits, 4)
        if net is None:
            continue
        net.calibrate([images()])
        net.eval()
        for name, weight in net.named_weights():
            quantizer = net.weight_quantizer(name)
            if not isinstance(quantizer, IntegerWeightQuantizer) or not net.method.exact:
                continue
            integers, exponents = quantizer.integers(weight.detach())
            low, high = (-1, 1) if quantizer.bits == 1 else (-(2 ** (quantizer.bits - 1)), 2 ** (quantizer.bits - 1) - 1)
            assert low <= int(integers.min()) <= int(integers.max()) <= high
            assert torch.equal(exponents, quantizer.exponents())
            assert torch.equal(integers.double() * 2.0 ** -exponents.double(), quantizer(weight).detach().double())


@every_method
@pytest.mark.parametrize("rule", ["down=32/", "up=/32", "head=32/"])
def test_float_layers_are_no_integer_program(method: str, rule: str) -> None:
    rules = (rule, "linear=/32") if rule == "up=/32" else (rule,)
    for bits in (4, 2, 1):
        net = network(method, bits, 6, rules=rules) or network(method, bits, bits, rules=rules)
        if net is not None:
            break
    assert net is not None
    net.calibrate([images()])
    with pytest.raises(ConfigError, match="not an integer program"):
        lower(net)
    assert net(images()).shape == (2, 3, 8, 8)  # but it trains and runs


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_option_is_refused_with_those_there_are(method: str) -> None:
    with pytest.raises(ConfigError, match=f"quant.options: unknown option of {method} 'nonsense'.*known: "):
        get_method(method, {"nonsense": 1})


def test_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown quantization method 'fixd_point' \(did you mean 'fixed_point'.*known: "):
        get_method("fixd_point")
