"""Ternary weights against the rule by hand and by numpy, the ternary tanh against its limit, its slope through training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medquant.config.bits import parse_rules
from medquant.errors import ConfigError
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.methods import get_method
from medquant.quant.methods.base import ActivationSite, WeightSite
from medquant.quant.methods.ternary import PowerOfTwoTernaryWeight, TernaryActivation, TernaryOptions, hard_ternary, ternarise, ternary_tanh
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import LayerPlan, QuantPlan, resolve_plan

INTEGER: dict[str, object] = {"scale": "power_of_two", "batch_norm": "folded", "activation": "fixed_point", "edges": "quantized"}


def unet(options: dict[str, object] | None = None, abits: int = 2, *rules: str) -> QuantNetwork:
    torch.manual_seed(3)
    method = get_method("ternary", options)
    graph = simplify(capture(UNet(UNetOptions(channels=4, depth=3)).eval(), torch.zeros(1, 1, 16, 16)), method.keeps_batch_norm)
    return QuantNetwork(graph, resolve_plan(graph, 2, abits, 8, parse_rules(rules), method.default_bits), method)


def image(seed: int = 4) -> Tensor:
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


# --- weights ------------------------------------------------------------------------------------------------------


def test_rule_by_hand() -> None:
    # Magnitudes 1, 2, 3, 6: mean 3, threshold 2.1; beyond it 3 and 6, scale 4.5. The second filter is all zeros: no 0/0.
    weight = torch.tensor([[1.0, -2.0, 3.0, -6.0], [0.0, 0.0, 0.0, 0.0]])
    integers, scale = ternarise(weight, 0)
    assert integers.tolist() == [[0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
    assert scale.tolist() == [[4.5], [0.0]]
    # One for all: mean 1.5, threshold 1.05; beyond it 2, 3 and 6.
    integers, scale = ternarise(weight, None)
    assert integers.tolist() == [[0.0, -1.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
    assert scale.tolist() == [[pytest.approx(11 / 3)]]


@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 3, 3), 0), ((5, 3, 2, 2), 1), ((4, 2, 3, 3, 3), 0)])
def test_rule_filter_by_filter_in_numpy(shape: tuple[int, ...], axis: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    site = WeightSite("layer", shape, axis, 2, axis)
    found = get_method("ternary").weight(site)(weight).numpy()
    filters = np.moveaxis(weight.numpy().astype(np.float64), axis, 0)
    for row, values in zip(np.moveaxis(found, axis, 0), filters, strict=True):
        beyond = np.abs(values) > 0.7 * np.abs(values).mean()
        np.testing.assert_allclose(row, np.where(beyond, np.sign(values) * np.abs(values)[beyond].mean(), 0.0), rtol=1e-6)


@pytest.mark.parametrize("scale", ["real", "power_of_two"])
def test_gradient_passes_unchanged_and_a_filter_of_zeros_can_grow(scale: str) -> None:
    weight = torch.randn(3, 2, 3, 3)
    weight[1] = 0.0
    weight.requires_grad_()
    quantized = get_method("ternary", {"scale": scale}).weight(WeightSite("layer", (3, 2, 3, 3), 0, 2))(weight)
    pattern = torch.arange(54.0).reshape(3, 2, 3, 3)
    (quantized * pattern).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, pattern)
    assert float(quantized[1].detach().abs().max()) == 0.0


def test_power_of_two_scale_is_the_nearest_in_the_logarithm() -> None:
    # Scales 3, 2.8, 1/5 (and 0): log2 is 1.58, 1.49, -2.32.
    weight = torch.tensor([[3.0, -3.0], [2.8, 2.8], [-0.2, 0.2], [0.0, 0.0]]).reshape(4, 2, 1, 1)
    quantizer = PowerOfTwoTernaryWeight(WeightSite("layer", (4, 2, 1, 1), 0, 2))
    integers, exponents = quantizer.integers(weight)
    assert exponents.flatten().tolist() == [-2, -1, 2, 0]
    assert integers.reshape(4, 2).tolist() == [[1, -1], [1, 1], [-1, 1], [0, 0]]
    assert quantizer(weight).reshape(4, 2).tolist() == [[4.0, -4.0], [2.0, 2.0], [-0.25, 0.25], [0.0, 0.0]]


# --- ternary tanh -------------------------------------------------------------------------------------------------


def test_ternary_tanh_by_its_closed_form() -> None:
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    # A sum of two logistic functions: tanh(z) = 2/(1 + exp(-2z)) - 1.
    expected = 1 / (1 + np.exp(-6 * (2 * x.numpy() - 1))) + 1 / (1 + np.exp(-6 * (2 * x.numpy() + 1))) - 1
    np.testing.assert_allclose(ternary_tanh(x, 3.0).numpy(), expected, atol=1e-12)
    assert hard_ternary(torch.tensor([-3.0, -0.5, -0.49, 0.0, 0.5, 0.51, 2.0])).tolist() == [-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_the_soft_function_converges_to_the_hard_one() -> None:
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    away = (x.abs() - 0.5).abs() > 0.05
    gaps = [float((ternary_tanh(x, beta) - hard_ternary(x))[away].abs().max()) for beta in (3.0, 8.0, 30.0, 100.0)]
    assert gaps == sorted(gaps, reverse=True)
    # At a distance d from a step the gap is (1 - tanh(2 beta d)) / 2, but for the other step's far smaller part.
    assert gaps[1] == pytest.approx((1 - np.tanh(2 * 8.0 * 0.051)) / 2, abs=0.005)
    assert gaps[-1] < 1e-4


def test_the_tanh_is_soft_in_training_hard_outside_and_takes_the_place_of_the_rectifier() -> None:
    quantizer = get_method("ternary").activation(ActivationSite("a", False, False))
    x = torch.tensor([-0.9, -0.2, 0.3, 0.8])
    quantizer.train()
    for relu in (True, False):
        assert torch.equal(quantizer(x, 0, 2, relu), ternary_tanh(x, 3.0))
    quantizer.eval()
    for relu in (True, False):
        assert quantizer(x, 0, 2, relu).tolist() == [-1.0, 0.0, 0.0, 1.0]


def test_slope_follows_training_and_is_saved() -> None:
    network = unet()
    quantizers = [quantizer for quantizer in network.activation_quantizers.values() if isinstance(quantizer, TernaryActivation)]
    assert len(quantizers) == len(network.activation_quantizers) > 0
    for done, beta in ((0.0, 3.0), (0.5, 5.5), (0.9, 7.5)):
        network.before_step(done)
        assert {float(quantizer.beta) for quantizer in quantizers} == {beta}
        network.train()
        assert torch.equal(quantizers[0](image(), 0, 2, True), ternary_tanh(image(), beta))
    again = unet()
    again.load_state_dict(network.state_dict())
    again.train()
    assert torch.equal(again(image()), network(image()))


# --- networks -----------------------------------------------------------------------------------------------------


def test_plan_of_ternarynet() -> None:
    rows = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in unet().plan.layers}
    assert rows["input"] == (None, 32)
    assert rows["enc1.conv1"] == (32, 32)
    assert rows["head"] == (32, None)
    assert rows["enc1.conv2"] == (2, 32)
    assert {rows[name] for name in rows if ".norm" in name} == {(32, 2)}
    assert rows["dec1.up"] == (None, 32)
    assert unet().plan["dec1.up"].note == "float in this method"
    assert not any(32 in (layer.weight_bits, layer.activation_bits) for layer in unet(INTEGER, 6).plan.layers)


def test_what_convolutions_read_outside_training_has_three_values() -> None:
    network = unet()
    network.calibrate([image()])
    network.eval()
    seen: list[Tensor] = []
    for quantizer in network.activation_quantizers.values():
        quantizer.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        network(image())
    assert len(seen) == 10  # two batch norms in each of five blocks
    assert all(set(output.unique().tolist()) <= {-1.0, 0.0, 1.0} for output in seen)
    # Behind rectifiers, which it replaces: negative values are there.
    assert any(-1.0 in output.unique().tolist() for output in seen)


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({}, False),
        ({"scale": "power_of_two", "batch_norm": "folded"}, False),
        ({"scale": "power_of_two", "activation": "fixed_point"}, False),
        ({"batch_norm": "folded", "activation": "fixed_point"}, False),
        (INTEGER, True),
    ],
)
def test_exact_needs_all_three(options: dict[str, object], exact: bool) -> None:
    assert get_method("ternary", options).exact is exact


def test_widths_follow_the_activation() -> None:
    with pytest.raises(ConfigError, match="layer: method ternary has activations of 2 or 32 bits; found 6"):
        get_method("ternary").check(QuantPlan((LayerPlan("layer", "conv 3×3", 2, 6),)))
    get_method("ternary", {"activation": "fixed_point"}).check(QuantPlan((LayerPlan("layer", "conv 3×3", 2, 6),)))
    with pytest.raises(ConfigError, match="layer: method ternary has weights of 2 or 32 bits; found 4"):
        get_method("ternary").check(QuantPlan((LayerPlan("layer", "conv 3×3", 4, 2),)))


def test_slopes_are_positive() -> None:
    with pytest.raises(ConfigError, match=r"quant\.options\.beta_end"):
        get_method("ternary", {"beta_end": 0.0})
    assert TernaryOptions().beta_start == 3.0
