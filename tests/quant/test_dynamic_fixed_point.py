"""Dynamic fixed point against numbers worked out by hand: formats, the rule of the ranges, and widths after a training step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.errors import ConfigError
from medquant.quant.capture import capture
from medquant.quant.dynamic_fixed_point import NumberFormat, ScaleGroup, fitting_integer_bits, fixed, overflow_rates
from medquant.quant.fold import simplify
from medquant.quant.methods import get_method
from medquant.quant.methods.dynamic_fixed_point import DynamicWeight
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.relu(self.middle(F.relu(self.norm(self.first(x))))))
        return logits


def network(bits: int = 8, **options: object) -> QuantNetwork:
    torch.manual_seed(0)
    method = get_method("dynamic_fixed_point", options)
    graph = simplify(capture(Three().eval(), torch.zeros(2, 1, 8, 8)), method.keeps_batch_norm)
    net = QuantNetwork(graph, resolve_plan(graph, bits, bits, bits, (), method.default_bits), method)
    net.calibrate([images(1)])
    return net


def images(seed: int) -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def optimiser_of(net: QuantNetwork, rate: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.layer_weights(), rate, momentum=0.9)


def step(net: QuantNetwork, optimiser: torch.optim.Optimizer, seed: int) -> None:
    optimiser.zero_grad()
    net.train()
    net.before_step(0.0)
    (net(images(seed)) - 1.0).square().mean().backward()
    net.after_backward()
    optimiser.step()
    net.after_step()


def multiples(x: Tensor, group: ScaleGroup, width: int) -> Tensor:
    """The tensor in steps of its format; asserts that it lies on the grid, within it, and is not all zero."""
    steps = x.detach().double() * 2.0 ** (width - 1 - float(group.integer_bits))
    assert torch.equal(steps, steps.round())
    assert 0 < steps.abs().max() <= 2 ** (width - 1) - 1
    return steps


# --- formats ----------------------------------------------------------------------------------------------------------


def test_fixed_by_hand() -> None:
    # NOB 3, NOIB 1: steps of 2**-2, ends at ±7/4; ties to even (0.125 → 0, 0.375 → 0.5).
    x = torch.tensor([0.124, 0.125, 0.126, 0.375, -0.3, 1.74, 1.9, 100.0, -1.9, -100.0])
    assert fixed(x, 3, 1).tolist() == [0.0, 0.0, 0.25, 0.5, -0.25, 1.75, 1.75, 1.75, -1.75, -1.75]
    # The radix point may lie outside the bits: NOIB 5 steps of 4, ends at ±28; NOIB -4 steps of 2**-7.
    assert fixed(torch.tensor([5.0, 6.0, 6.1, 50.0]), 3, 5).tolist() == [4.0, 8.0, 8.0, 28.0]
    assert fixed(torch.tensor([0.012, 0.1, -0.1]), 3, -4).tolist() == [2 / 128, 7 / 128, -7 / 128]


@pytest.mark.parametrize(("magnitude_bits", "integer_bits"), [(2, 0), (7, 3), (9, -6), (11, 5), (19, 5)])
def test_fixed_equals_numpy(magnitude_bits: int, integer_bits: int) -> None:
    x = np.random.default_rng(0).standard_cauchy(10_000).astype(np.float32) * 2.0 ** (integer_bits - 2)
    scale, limit = 2.0 ** (magnitude_bits - integer_bits), 2.0**magnitude_bits - 1
    expected = np.clip(np.rint(x.astype(np.float64) * scale), -limit, limit) / scale
    assert np.array_equal(fixed(torch.from_numpy(x), magnitude_bits, torch.tensor(float(integer_bits))).double().numpy(), expected)
    assert np.abs(expected).max() == limit / scale


def test_overflow_rates_count_what_reaches_the_largest_value_and_half_of_it() -> None:
    # NOB 3, NOIB 1: the largest value is 1.75, with half the range 0.875.
    x = torch.tensor([0.0, 0.8, 0.875, -1.0, 1.74, 1.75, -1.75, 9.0])
    assert overflow_rates(x, 3, 1).tolist() == [3 / 8, 6 / 8]


@pytest.mark.parametrize(("largest", "expected"), [(1.74, 1), (1.75, 2), (0.874, 0), (0.875, 1), (100.0, 7), (0.01, -6)])
def test_a_range_starts_at_the_least_that_holds_the_first_tensor(largest: float, expected: int) -> None:
    x = torch.tensor([0.001, -largest])
    assert int(fitting_integer_bits(x, 3, 1e-4)) == expected
    assert overflow_rates(x, 3, expected)[0] == 0
    assert overflow_rates(x, 3, expected)[1] > 0
    # One value in a hundred may stay outside where r_max says so.
    assert int(fitting_integer_bits(torch.cat([torch.full((99,), 0.5), torch.tensor([largest * 100])]), 3, 0.01)) == 0


def test_zeros_and_infinities_set_no_range() -> None:
    for x in (torch.zeros(5), torch.tensor([1.0, float("inf")])):
        assert bool(fitting_integer_bits(x, 3, 0.0).isnan())


# --- the rule of the ranges -------------------------------------------------------------------------------------------


def group(kind: str = "dynamic", start: int | None = 1, r_max: float = 0.01) -> ScaleGroup:
    return ScaleGroup(NumberFormat(kind, 4, 4, r_max, start)).train()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outside", "upper_half", "expected"),
    [
        (2, 0, 2),  # 2 % beyond the range: one bit more
        (1, 50, 1),  # 1 % is allowed; the upper half of the range is used: unchanged
        (0, 2, 1),  # with half the range, 2 % would not fit: unchanged
        (0, 1, 0),  # with half the range, 1 % would not fit: one bit less
        (0, 0, 0),
    ],
)
def test_rule_on_crafted_tensors(outside: int, upper_half: int, expected: int) -> None:
    scale = group()
    x = torch.cat([torch.full((outside,), 5.0), torch.full((upper_half,), -1.0), torch.full((100 - outside - upper_half,), 0.1)])
    for _ in range(3):
        scale.observe(x, 4)
    scale.adapt()
    assert int(scale.integer_bits) == expected
    assert scale.rates.tolist() == [0.0, 0.0]
    assert float(scale.tensors) == 0


def test_rule_goes_by_the_average_over_the_period() -> None:
    scale = group()
    quiet, loud = torch.full((100,), 1.0), torch.cat([torch.full((3,), 5.0), torch.full((97,), 1.0)])
    for x in (quiet, quiet, loud):  # 1 % on average: allowed
        scale.observe(x, 4)
    scale.adapt()
    assert int(scale.integer_bits) == 1
    for x in (quiet, loud):  # 1.5 % on average
        scale.observe(x, 4)
    scale.adapt()
    assert int(scale.integer_bits) == 2


def test_a_group_that_saw_nothing_stays_and_evaluation_is_not_counted() -> None:
    scale = group()
    scale.adapt()
    assert int(scale.integer_bits) == 1
    scale.eval()
    scale.observe(torch.full((10,), 100.0), 4)
    assert float(scale.tensors) == 0


def test_a_measured_range_is_set_once_by_the_first_tensor_that_is_not_zero() -> None:
    scale = group(start=None)
    for x, expected in ((torch.zeros(3), 5), (torch.tensor([0.01]), -6), (torch.tensor([7.0]), -6)):
        scale.observe(x, 4)
        assert int(scale.integer_bits) == expected


def test_half_and_float() -> None:
    x = torch.tensor([0.1, 1e-9, 60001.0])
    assert np.array_equal(group("half").round(x, 4).numpy(), x.numpy().astype(np.float16).astype(np.float32))
    assert torch.equal(group("float").round(x, 4), x)


# --- in a network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "options"), [(4, {}), (8, {"propagation_bits": 10}), (8, {"update_bits": 9})])
def test_everything_has_its_width_after_a_step(bits: int, options: dict[str, object]) -> None:
    net = network(bits, **options)
    seen: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        seen[name] = tensor
        tensor.register_hook(lambda grad: seen.__setitem__(f"d{name}", grad))

    for name in ("first", "middle", "last"):
        quantizer = net.weight_quantizer(name)
        assert isinstance(quantizer, DynamicWeight)
        # Hooks on what a rounding reads see the gradient it has rounded; on what it writes, the values.
        quantizer.weighted_sums.register_forward_hook(
            lambda module, inputs, output, name=name: (keep(f"sums {name}", inputs[0]), seen.__setitem__(f"z {name}", output))[0]
        )
    net.activation_quantizers["first"].written.register_forward_hook(lambda module, inputs, output: keep("written", inputs[0]))
    optimiser = optimiser_of(net)
    step(net, optimiser, 2)
    propagation, gradient = int(options.get("propagation_bits", bits)), 10  # type: ignore[call-overload]
    for name, weight in net.named_weights():
        quantizer = net.weight_quantizer(name)
        assert isinstance(quantizer, DynamicWeight)
        assert weight.grad is not None
        multiples(weight, quantizer.stored_weight.values, int(options.get("update_bits", 12)))  # type: ignore[call-overload]
        multiples(net.bias(name), quantizer.stored_bias.values, int(options.get("update_bits", 12)))  # type: ignore[call-overload]
        multiples(quantizer(weight), quantizer.stored_weight.values, propagation)
        multiples(weight.grad, quantizer.stored_weight.gradients, gradient)
        assert net.bias(name).grad is not None
        multiples(net.bias(name).grad, quantizer.stored_bias.gradients, gradient)  # type: ignore[arg-type]
        multiples(seen[f"dsums {name}"], quantizer.weighted_sums.gradients, gradient)
        if name != "last" or "propagation_bits" in options:
            assert quantizer.weighted_sums.values is not None
            multiples(seen[f"z {name}"], quantizer.weighted_sums.values, propagation)
    multiples(seen["dwritten"], net.activation_quantizers["first"].written.gradients, gradient)


def test_ranges_are_looked_at_every_period() -> None:
    net = network(8, period=2, initial_integer_bits=5)
    optimiser = optimiser_of(net, 1e-3)
    quantizer = net.weight_quantizer("middle")
    assert isinstance(quantizer, DynamicWeight)
    found = []
    for seed in range(4):
        step(net, optimiser, seed)
        found.append(int(quantizer.stored_weight.values.integer_bits))
    assert found == [5, 4, 4, 3]  # weights below 1/6 need neither 5 nor 3 integer bits
    still = network(8, period=2, initial_integer_bits=5, format="fixed")
    for seed in range(4):
        step(still, optimiser_of(still, 1e-3), seed)
    assert {int(scale.integer_bits) for scale in still.modules() if isinstance(scale, ScaleGroup)} == {5}


def test_after_the_search_for_ranges_parameters_start_again() -> None:
    net = network(8, warm_up_batches=3, period=2, initial_integer_bits=5)
    optimiser = optimiser_of(net)
    first = {name: weight.detach().clone() for name, weight in net.named_weights()}
    first_bias = net.bias("middle").detach().clone()
    for seed in range(3):
        assert (seed == 0) == all(torch.equal(weight, first[name]) for name, weight in net.named_weights())
        step(net, optimiser, seed)
    assert all(torch.equal(weight, first[name]) for name, weight in net.named_weights())
    assert torch.equal(net.bias("middle"), first_bias)
    quantizer = net.weight_quantizer("middle")
    assert isinstance(quantizer, DynamicWeight)
    assert int(quantizer.stored_weight.values.integer_bits) == 4  # the ranges are kept
    step(net, optimiser, 3)
    assert not torch.equal(net.weights["middle"], first["middle"])
    multiples(net.weights["middle"], quantizer.stored_weight.values, 12)


def test_a_search_resumed_in_the_middle_ends_alike() -> None:
    def run(stop: int | None) -> dict[str, Tensor]:
        net = network(8, warm_up_batches=4, period=2)
        for seed in range(6):
            if seed == stop:
                state = {name: value.clone() for name, value in net.state_dict().items()}
                net = network(8, warm_up_batches=4, period=2)
                net.load_state_dict(state)
            step(net, torch.optim.SGD(net.layer_weights(), 0.05), seed)
        return dict(net.state_dict())

    whole = run(None)
    for stop in (1, 3, 4, 5):
        resumed = run(stop)
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_widths_the_plan_cannot_show_are_asked_for_as_8_bits() -> None:
    for options in ({"propagation_bits": 10}, {"format": "half"}):
        assert network(8, **options)
        with pytest.raises(ConfigError, match=r"propagation stands as 8 bits in the plan.*found 4; set quant.wbits"):
            network(4, **options)
    assert network(6, propagation_bits=6)
    with pytest.raises(ConfigError, match=r"has (weights|activations) of 3, 4, 5, 6, 7, 8 or 32 bits; found 1"):
        network(1)


def test_wide_formats_come_to_the_float_network() -> None:
    exact = network(8, format="float").eval()
    wide = network(8, propagation_bits=20, update_bits=20).eval()
    x = images(3)
    assert torch.allclose(wide(x), exact(x), atol=1e-4)
    net = Three()
    torch.manual_seed(0)
    net = Three().eval()
    assert torch.allclose(exact(x), net(x), atol=1e-5)
