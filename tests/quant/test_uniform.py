"""Post-training quantization against closed forms, numpy, and the float network's own means and outputs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medquant.deploy.agreement import check_agreement
from medquant.errors import ConfigError
from medquant.quant.bias_correction import correct_biases
from medquant.quant.capture import capture
from medquant.quant.equalize import equalizable_pairs, equalize_layers
from medquant.quant.fold import simplify
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import Graph
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.methods.base import ActivationSite, IntegerWeightQuantizer, WeightSite
from medquant.quant.methods.fixed_point import FixedPointActivation
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.ranges import holding_activation_format, percentile, real_activation_format, real_weight_steps

both_axes = pytest.mark.parametrize("axes", [2, 3])


def weight_integers(weight: Tensor, bits: int, **options: object) -> tuple[Tensor, Tensor]:
    quantizer = get_method("uniform", options).weight(WeightSite("w", tuple(weight.shape), 0, bits))
    quantizer.initialise(weight)
    assert isinstance(quantizer, IntegerWeightQuantizer)
    return quantizer.integers(weight)


def activation(samples: dict[int, Tensor], signed: bool, **options: object) -> FixedPointActivation:
    quantizer = get_method("uniform", options).activation(ActivationSite("x", False, signed))
    quantizer.initialise(samples, signed)
    assert isinstance(quantizer, FixedPointActivation)
    return quantizer


def test_min_max_weight_step_by_hand() -> None:
    # Four bits hold -8..7. A step of 1/8 holds 0.75 as 6, 1/16 would need 12; 1/4 holds 1.5 as 6, 1/8 would need 12.
    weight = torch.tensor([[0.75, -0.25], [1.5, 0.5]]).reshape(2, 2, 1, 1)
    integers, exponents = weight_integers(weight, 4, range="min_max")
    assert exponents.flatten().tolist() == [3, 2]
    assert integers.flatten().tolist() == [6, -2, 6, 2]


def test_percentile_is_numpys() -> None:
    values = torch.randn(3, 998, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for share in (0.1, 50.5, 99.0, 99.9, 100.0):
        assert np.allclose(percentile(values, share).numpy(), np.percentile(values.numpy(), share, axis=1), rtol=0, atol=1e-12)


def test_a_percentile_lets_an_outlier_saturate() -> None:
    values = torch.cat([torch.linspace(0, 1, 999), torch.tensor([64.0])])
    # numpy: the 99th percentile of these is 0.9903; 15 levels hold it in steps of 1/8 (7.9 of them), not of 1/16 (15.8).
    assert np.percentile(values.numpy(), 99.0) == pytest.approx(0.990, abs=1e-3)
    assert activation({4: values}, signed=False, range="percentile", percentile=99.0).format(4, 3) == TensorFormat(4, 0, 3)
    assert float(activation({4: values}, False, range="percentile", percentile=99.0).log2_step_value()) == -3.0
    # All of them need steps of 8: 64 / 15 = 4.3.
    assert float(activation({4: values}, False, range="min_max").log2_step_value()) == 3.0


def test_min_max_activation_by_hand() -> None:
    # -1..3 in 15 steps: at 1/2 they take 8, at 1/4 they take 16, one too many; at 1/2 real zero is level 2.
    assert holding_activation_format((-1.0, 3.0), 4) == (1, 2)
    # 0..15/4 fit exactly.
    assert holding_activation_format((0.0, 3.75), 4) == (2, 0)
    assert holding_activation_format((0.0, 0.0), 4) == (0, 0)
    # -1.5..5.5 spans seven steps of 1, but rounds to -2..6, which takes eight.
    assert holding_activation_format((-1.5, 5.5), 3) == (-1, 1)
    # Both ends are held after rounding: nothing saturates by more than half a step.
    for low in np.linspace(-3, 0, 13):
        for high in np.linspace(0.01, 3, 13):
            exponent, zero_point = holding_activation_format((float(low), float(high)), 3)
            assert zero_point + round(low * 2.0**exponent) >= 0
            assert zero_point + round(high * 2.0**exponent) <= 7


def test_real_steps_by_hand() -> None:
    weight = torch.tensor([[0.7, -0.35], [2.1, 0.3]])
    assert real_weight_steps(weight, 0, 4, "min_max", 99.9).flatten().tolist() == pytest.approx([0.1, 0.3])
    # One bit: the mean magnitude.
    assert real_weight_steps(weight, 0, 1, "min_max", 99.9).flatten().tolist() == pytest.approx([0.525, 1.2])
    step, zero_point = real_activation_format({4: torch.tensor([-1.0, 2.0, 0.5])}, True, "min_max", 99.9)
    assert step == pytest.approx(0.2)
    assert zero_point == 5


def test_squared_error_is_never_worse_than_the_whole_range() -> None:
    weight = torch.randn(8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for bits in (2, 3, 4, 8):
        errors = []
        for kind in ("squared_error", "min_max"):
            step = real_weight_steps(weight, 0, bits, kind, 99.9)  # type: ignore[arg-type]
            high = 2 ** (bits - 1) - 1
            errors.append(((weight / step).round().clamp(-high - 1, high) * step - weight).square().sum(dim=1))
        assert bool((errors[0] <= errors[1]).all())
    # At two bits a step that lets the largest saturate is better for each of these channels.
    assert bool((real_weight_steps(weight, 0, 2, "squared_error", 99.9) < real_weight_steps(weight, 0, 2, "min_max", 99.9)).all())


class Chain(nn.Module):
    """Three convolutions in a row, one of them transposed, with channels of very unlike size, and one read twice."""

    def __init__(self, axes: int, linear: bool = False) -> None:
        super().__init__()
        conv, transposed = (nn.Conv2d, nn.ConvTranspose2d) if axes == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.first = conv(2, 6, 3, padding=1)
        self.second = transposed(6, 4, 2, stride=2)
        self.third = conv(4, 4, 3, padding=1)
        self.head = conv(8, 2, 1)
        self.act = nn.Identity() if linear else nn.ReLU()
        with torch.no_grad():
            for number, channel in enumerate(self.first.weight):
                channel.mul_(4.0 ** (number - 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.first(x))))
        logits: Tensor = self.head(torch.cat([self.act(self.third(x)), x], 1))
        return logits


@cache
def chain(axes: int, linear: bool = False) -> Graph:
    torch.manual_seed(0)
    return simplify(capture(Chain(axes, linear).eval(), torch.zeros(1, 2, *[8] * axes)))


def quantized(axes: int, bits: int, linear: bool = False, **options: object) -> QuantNetwork:
    graph = chain(axes, linear)
    return QuantNetwork(graph, resolve_plan(graph, bits, bits, bits), get_method("uniform", options)).eval()


def images(axes: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 2, *[8] * axes, generator=generator) for _ in range(3)]


def float_outputs(network: QuantNetwork, batches: list[Tensor]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        network.walk(batches, lambda layer, outputs: found.setdefault(layer.name, outputs), quantized=False)
    return found


@both_axes
def test_equalization_keeps_the_function_and_evens_the_channels(axes: int) -> None:
    network, batches = quantized(axes, 8), images(axes)
    before = float_outputs(network, batches)["head"]
    # second is read by third and by the concatenation: only the first pair may be touched.
    assert [(first.name, second.name) for first, second in equalizable_pairs(network.graph)] == [("first", "second")]
    assert equalize_layers(network) == 1
    after = float_outputs(network, batches)["head"]
    for found, expected in zip(after, before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Equation 9 of the paper: at the optimum both layers' ranges agree, channel by channel.
    outgoing = network.parameters_of("first")[0].abs().flatten(1).amax(1)
    incoming = network.parameters_of("second")[0].abs().flatten(1).amax(1)
    torch.testing.assert_close(outgoing, incoming, rtol=1e-3, atol=0)


def test_equalization_leaves_dead_channels_alone() -> None:
    network = quantized(2, 8)
    weight, bias = network.parameters_of("first")
    with torch.no_grad():
        weight[3], bias[3] = 0.0, 0.25
    expected = float_outputs(network, images(2))["head"][0]
    equalize_layers(network)
    assert bool(torch.isfinite(network.parameters_of("second")[0]).all())
    torch.testing.assert_close(float_outputs(network, images(2))["head"][0], expected, rtol=1e-4, atol=1e-4)


@both_axes
def test_bias_correction_makes_the_mean_output_that_of_the_float_network(axes: int) -> None:
    """Without rectifiers and with real scales, whose biases are not rounded, nothing else shifts a mean."""
    batches = images(axes)
    plain = quantized(axes, 3, linear=True, scale="real", range="min_max", bias_correction=False)
    plain.calibrate(batches)
    expected = float_outputs(plain, batches)
    shifts = []
    for network in (plain, quantized(axes, 3, linear=True, scale="real", range="min_max")):
        network.calibrate(batches)
        found: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            network.walk(batches, lambda layer, outputs, into=found: into.setdefault(layer.name, outputs))  # type: ignore[misc]
        mean = torch.cat(found["head"]).transpose(0, 1).flatten(1).mean(1) - torch.cat(expected["head"]).transpose(0, 1).flatten(1).mean(1)
        shifts.append(float(mean.abs().max()))
    assert shifts[0] > 1e-2
    assert shifts[1] < 1e-5


def test_bias_correction_uses_the_first_images_only(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batches = quantized(2, 4, bias_correction=False), images(2)
    network.calibrate(batches)
    seen: list[int] = []
    walk = network.walk
    monkeypatch.setattr(network, "walk", lambda walked, *rest, **named: (seen.append(len(walked)), walk(walked, *rest, **named))[1])
    monkeypatch.setattr("medquant.quant.bias_correction._MOST_VOXELS", 2 * batches[0][:, 0].numel())
    correct_biases(network, batches)
    assert seen == [1, 1, 2]  # two float passes of one batch, then both side by side


@both_axes
@pytest.mark.parametrize("options", [{}, {"range": "min_max"}, {"range": "percentile"}, {"equalization": True}], ids=str)
def test_power_of_two_is_an_exact_program_close_to_the_float_network(axes: int, options: dict[str, object]) -> None:
    network, batches = quantized(axes, 8, **options), images(axes)
    expected = float_outputs(network, batches)["head"][0]
    network.calibrate(batches)
    agreement = check_agreement(network, lower(network), batches[0].numpy())
    assert agreement.checked > 0
    assert agreement.differing == 0
    with torch.no_grad():
        error = (network(batches[0]) - expected).square().mean() / expected.var()
    assert float(error) < 2e-3


@both_axes
def test_real_scales_are_closer_and_no_program(axes: int) -> None:
    batches, errors = images(axes), []
    for scale in ("power_of_two", "real"):
        network = quantized(axes, 6, scale=scale)
        expected = float_outputs(network, batches)["head"][0]
        network.calibrate(batches)
        with torch.no_grad():
            errors.append(float((network(batches[0]) - expected).square().mean()))
    assert errors[1] < errors[0]
    with pytest.raises(ConfigError, match="not an integer program: method uniform"):
        lower(network)
    assert not network.method.exact


def test_nothing_is_learned() -> None:
    network = quantized(2, 8)
    assert not network.method.learns
    assert list(network.step_parameters()) == []


def test_options_are_checked_by_name() -> None:
    with pytest.raises(ConfigError, match=r"quant\.options\.range"):
        get_method("uniform", {"range": "max"})
    with pytest.raises(ConfigError, match=r"quant\.options\.percentile"):
        get_method("uniform", {"percentile": 20.0})
