"""The ternary tanh as an operator: its gradient against torch's own, its slope through capture, training and checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from medquant.models.ternary_tanh import TernaryTanh
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.graph import BatchNorm, Convolution, FloatOperation
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.ternary_tanh import apply_ternary_tanh, hardened, set_slope, slope_at, ternary_tanh

X = torch.tensor([-2.0, -0.5, -0.3, 0.0, 0.3, 0.5, 2.0])


def _network() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetOptions(channels=2, depth=2, block="conv_act_norm", activation="ternary_tanh")).eval()


def _quantized(network: nn.Module, wbits: int = 4, abits: int = 6) -> QuantNetwork:
    graph = simplify(capture(network, torch.zeros(2, 1, 8, 8)), keep_batch_norm=True)
    method = get_method("paper", {"init": "warm"})
    return QuantNetwork(graph, resolve_plan(graph, wbits, abits, 8, (), method.default_bits), method)


def test_values() -> None:
    # at 0 the two halves cancel; at ±0.5 one of them is 0, the other tanh(2 beta)
    y = apply_ternary_tanh(X, torch.tensor(3.0))
    assert float(y[3]) == 0.0
    assert float(y[5]) == pytest.approx(math.tanh(6.0) / 2)
    assert torch.equal(y, ternary_tanh(X, 3.0))


@pytest.mark.parametrize("beta", [3.0, 8.0])
def test_the_gradient_is_that_of_the_written_function(beta: float) -> None:
    mine, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    apply_ternary_tanh(mine, torch.tensor(beta)).square().sum().backward()
    ternary_tanh(theirs, beta).square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_slopes_rise_from_three_to_eight_in_equal_steps() -> None:
    assert [slope_at(epoch, 6) for epoch in range(6)] == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert slope_at(0, 1) == 8.0


def test_a_hardened_network_has_three_values_and_is_put_back() -> None:
    module = TernaryTanh()
    with hardened(module):
        assert module(torch.tensor([-3.0, -0.51, -0.49, 0.0, 0.49, 0.51])).tolist() == [-1, -1, 0, 0, 0, 1]
    assert float(module.beta) == 3.0


def test_capture_keeps_it_as_one_operation_and_quantizes_what_batch_norm_writes() -> None:
    network = _quantized(_network())
    curves = [operation for operation in network.graph if isinstance(operation, FloatOperation)]
    assert [curve.kind for curve in curves] == ["ternary tanh"] * 6  # two in each of enc1, bottom, dec1
    assert not any(operation.relu for operation in network.graph if isinstance(operation, Convolution | BatchNorm))
    written = {layer.name: layer.activation_bits for layer in network.plan.layers}
    assert {written[name] for name in written if name.endswith(("norm1", "norm2"))} == {6}
    assert {written[name] for name in written if "conv" in name or "tanh" in name} == {32}


def test_the_quantized_network_computes_what_the_float_one_does_at_every_slope() -> None:
    network = _network()
    # the first batch norm alone is quantized, to a grid far finer than the comparison: nothing is, in effect
    twin = _quantized(network, 32, 32)
    images = torch.rand(2, 1, 16, 24)
    for slope in (3.0, 8.0):
        set_slope(network, slope)
        set_slope(twin, slope)
        with torch.no_grad():
            torch.testing.assert_close(twin.eval()(images), network(images), rtol=1e-4, atol=1e-5)
    before = twin(images)
    set_slope(twin, 3.0)
    assert not torch.allclose(twin(images), before)


def test_the_slope_is_stored_with_the_quantized_network() -> None:
    trained = _quantized(_network())
    set_slope(trained, 8.0)
    again = _quantized(_network())
    again.load_state_dict(trained.state_dict())
    assert [float(slope) for slope in again.float_tensors.slopes()] == [8.0] * 6


def test_gradients_reach_the_first_layer_of_a_quantized_network() -> None:
    network = _quantized(_network()).train()
    network.calibrate([torch.rand(2, 1, 16, 16)])
    out: Tensor = network(torch.rand(2, 1, 16, 16))
    out.square().mean().backward()
    assert float(network.parameters_of("enc1.conv1")[0].grad.abs().sum()) > 0  # type: ignore[union-attr]
