"""The 2019 paper's quantizer against its tables, and against the same arithmetic in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medquant.config.bits import parse_rules
from medquant.errors import ConfigError
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.methods import get_method
from medquant.quant.methods.base import ActivationSite, WeightSite
from medquant.quant.methods.paper import FixedPointNumber, PaperActivation, PaperOptions
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import LayerPlan, QuantPlan, resolve_plan

Q_PAIRS = [(0, 1), (0, 2), (0, 4), (0, 8), (2, 0), (4, 0), (6, 0), (8, 0), (8, 8), (3, 2)]


def number(i: int, f: int, **options: Any) -> FixedPointNumber:
    return FixedPointNumber(i, f, PaperOptions(**options))


def values(number: FixedPointNumber, *x: float) -> list[float]:
    return list(number.quantize(torch.tensor(x, dtype=torch.float32)).tolist())


def by_fractions(x: float, i: int, f: int, overflow: str, rounding: str) -> Fraction:
    """Equations of the paper in exact arithmetic; Python rounds a Fraction half to even, as the released code does."""
    magnitude = abs(Fraction(x))
    whole = magnitude.numerator // magnitude.denominator
    fraction = magnitude - whole
    if f == 0:
        whole = whole if rounding == "floor" else round(magnitude)
        part = Fraction(0)
    else:
        part = Fraction(round(fraction * 2**f), 2**f)
    total = min(whole, 2**i - 1) + part if overflow == "wrap" else min(whole + part, Fraction(2**i) - Fraction(1, 2**f))
    return -total if x < 0 else total


@pytest.mark.parametrize("rounding", ["floor", "nearest"])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize(("i", "f"), Q_PAIRS)
def test_is_the_equation_in_exact_fractions(i: int, f: int, overflow: str, rounding: str) -> None:
    generator = torch.Generator().manual_seed(i * 9 + f)
    spread = torch.randn(500, generator=generator) * 2.0 ** torch.randint(-6, 10, (500,), generator=generator)
    ties = torch.arange(-40, 41) / 2.0 ** (f + 1)
    x = torch.cat([spread, ties])
    expected = [float(by_fractions(value, i, f, overflow, rounding)) for value in x.tolist()]
    assert number(i, f, overflow=overflow, integer_rounding=rounding).quantize(x).tolist() == expected


@pytest.mark.parametrize(("f", "levels", "saturated"), [(1, 5, 3), (2, 9, 7), (3, 17, 15), (4, 33, 31), (8, 513, 511)])
def test_number_of_weight_values(f: int, levels: int, saturated: int) -> None:
    # The paper's table: 2^(f+1) + 1 on (-1, 1), because a fraction may round up to 1; storable are two fewer.
    x = torch.linspace(-1, 1, 40001)[1:-1]
    assert len(number(0, f).quantize(x).unique()) == levels
    assert len(number(0, f, overflow="saturate").quantize(x).unique()) == saturated
    # Every value fits the stored width: sign, f bits and, as printed, one for 1.0; and would not fit one bit less.
    for count, stored in ((levels, number(0, f).stored_bits), (saturated, number(0, f, overflow="saturate").stored_bits)):
        assert 2 ** (stored - 1) < count <= 2**stored


def test_weights_beyond_one_keep_only_their_fraction() -> None:
    # By the equations, at Q0.4: 0.2 is 3.2 sixteenths, 0.97 is 15.52, 0.3 is 4.8.
    assert values(number(0, 4), 1.0, 1.2, 1.97, -1.3, -1.0) == [0.0, 0.1875, 1.0, -0.3125, 0.0]
    assert values(number(0, 4, overflow="saturate"), 1.0, 1.2, 1.97, -1.3, 0.99) == [0.9375, 0.9375, 0.9375, -0.9375, 0.9375]


@pytest.mark.parametrize(("i", "highest"), [(4, 15.0), (6, 63.0), (8, 255.0)])
def test_activations_have_a_dead_zone_and_an_end(i: int, highest: float) -> None:
    found = values(number(i, 0), 0.999, -0.999, 1.0, -1.5, highest + 0.9, 1e6, -1e6)
    assert found == [0.0, 0.0, 1.0, -1.0, highest, highest, -highest]
    assert values(number(i, 0, integer_rounding="nearest"), 0.499, 0.5, 0.75, 1.5, -0.75) == [0.0, 0.0, 1.0, 2.0, -1.0]


def test_dead_zone_of_normalised_activations() -> None:
    # |x| < 1 of a standard normal: erf(1/sqrt(2)), 68 %; behind a rectifier also the negative half: 84 %.
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    share = float((number(6, 0).quantize(x) == 0).float().mean())
    assert share == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.005)
    rectified = float((number(6, 0).quantize(x.relu()) == 0).float().mean())
    assert rectified == pytest.approx(0.8413, abs=0.005)


def test_a_fraction_carries_into_the_whole_part() -> None:
    assert values(number(8, 8), 1.999, 255.999, 300.999, 300.25) == [2.0, 256.0, 256.0, 255.25]
    assert values(number(8, 8, overflow="saturate"), 1.999, 255.999, 300.25) == [2.0, 255.99609375, 255.99609375]
    assert number(8, 8).stored_bits == 18  # sign, 8, 8, and one for 256.0


@pytest.mark.parametrize(("i", "f", "m"), [(0, 2, 0.75), (0, 4, 0.9375), (0, 8, 0.99609375), (4, 0, 8.0), (6, 0, 32.0), (8, 0, 128.0)])
def test_power_of_two_variant_clips_at_m(i: int, f: int, m: float) -> None:
    powers = number(i, f, quantizer="power_of_two")
    assert values(powers, 1e6, -1e6, 0.0, -0.0) == [m, -m, 0.0, 0.0]
    # Nearest in the logarithm: sqrt(1/8) is 0.35355, sqrt(1/32) is 0.17678.
    assert values(powers, 0.36, 0.35, 0.18, -0.17) == [0.5, 0.25, 0.25, -0.125]
    small = [2.0**-exponent for exponent in range(2, 120)]
    assert values(powers, *small) == small


def test_m_of_a_format_with_both_parts() -> None:
    assert number(8, 8, quantizer="power_of_two").limit == 128.99609375


@pytest.mark.parametrize("options", [{}, {"overflow": "saturate"}, {"integer_rounding": "nearest"}, {"quantizer": "power_of_two"}])
@pytest.mark.parametrize(("i", "f"), Q_PAIRS)
def test_what_is_representable_stays(i: int, f: int, options: dict[str, Any]) -> None:
    chosen = number(i, f, **options)
    x = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 2.0 ** max(i - 1, -1)
    once = chosen.quantize(x)
    # Two kinds of value are not kept: as printed the carry to 2^i, whose whole part is clamped, and M, which is no power of two.
    kept = once.abs() < (2.0**i if chosen.options.quantizer == "split" else chosen.limit)
    assert int(kept.sum()) > 50
    assert torch.equal(chosen.quantize(once)[kept], once[kept])
    if options.get("overflow") == "saturate":
        assert bool(kept.all())


def site(bits: int) -> WeightSite:
    return WeightSite("layer", (2, 1, 3, 3), 0, bits)


@pytest.mark.parametrize(("straight_through", "expected"), [("identity", [1.0, 1.0, 1.0, 1.0]), ("clipped", [1.0, 1.0, 0.0, 0.0])])
def test_gradient(straight_through: str, expected: list[float]) -> None:
    weights = get_method("paper", {"straight_through": straight_through}).weight(site(4))
    w = torch.tensor([0.01, -1.0, 1.01, -30.0], requires_grad=True)
    weights(w).sum().backward()
    assert w.grad is not None
    assert w.grad.tolist() == expected
    activations = get_method("paper", {"straight_through": straight_through}).activation(ActivationSite("a", False, True))
    x = torch.tensor([0.3, -64.0, 64.5, -1e4], requires_grad=True)
    activations(x, 0, 6, False).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == expected


def test_formats_follow_bits_and_options() -> None:
    def quantized(options: dict[str, object], w: float, wbits: int, a: float, abits: int) -> tuple[float, float]:
        method = get_method("paper", options)
        weight = float(method.weight(site(wbits))(torch.tensor(w)))
        return weight, float(method.activation(ActivationSite("a", False, True))(torch.tensor(a), 0, abits, False))

    # Q0.2 / Q4.0, then Q8.8 / Q8.8, by the equations.
    assert quantized({}, 0.4, 2, 77.7, 4) == (0.5, 15.0)
    assert quantized({"weight_integer_bits": 8, "activation_fraction_bits": 8}, -3.3, 8, 77.7, 8) == (-3.30078125, 77.69921875)
    # With the sign counted, 4 and 6 bits are Q0.3 and Q5.0.
    assert quantized({"sign_counted": True}, 0.4, 4, 77.7, 6) == (0.375, 31.0)


def test_a_sign_that_is_counted_needs_a_second_bit() -> None:
    method = get_method("paper", {"sign_counted": True})
    with pytest.raises(ConfigError, match="layer: method paper has weights of 2, 3, 4, 5, 6, 7, 8 or 32 bits; found 1"):
        method.check(QuantPlan((LayerPlan("layer", "conv 3×3", 1, 6),)))
    get_method("paper").check(QuantPlan((LayerPlan("layer", "conv 3×3", 1, 1),)))


@pytest.mark.parametrize("scale", [3.0, 0.0, -2.0, "automatic"])
def test_scale_is_a_power_of_two(scale: float | str) -> None:
    with pytest.raises(ConfigError, match=r"quant\.options"):
        get_method("paper", {"activation_scale": scale})


def test_activation_scale_moves_the_dead_zone_and_is_saved() -> None:
    small = torch.rand(4000, generator=torch.Generator().manual_seed(2)) * 0.25
    fixed = PaperActivation(PaperOptions(activation_scale=0.5))
    assert float(fixed(torch.tensor(5.9), 0, 6, False)) == 4.0  # 2.95 is cut to 2
    chosen = PaperActivation(PaperOptions(activation_scale="auto"))
    assert float(chosen(small, 0, 6, False).abs().max()) == 0.0
    chosen.initialise({6: small}, False)
    # 63 steps for values up to 0.25: a factor of 256 would end at 0.246, and cut 1.6 % of them by less than a step.
    assert float(chosen.scale) == 256.0
    assert float((chosen(small, 0, 6, False) - small).abs().max()) <= 1 / 256
    again = PaperActivation(PaperOptions(activation_scale="auto"))
    again.load_state_dict(chosen.state_dict())
    assert torch.equal(again(small, 0, 6, False), chosen(small, 0, 6, False))


def paper_unet(wbits: int, abits: int, options: dict[str, object] | None = None, *rules: str, block: str = "conv_act_norm") -> QuantNetwork:
    torch.manual_seed(3)
    model = UNet(UNetOptions(channels=4, depth=3, block=block))  # type: ignore[arg-type]
    method = get_method("paper", options)
    graph = simplify(capture(model.eval(), torch.zeros(1, 1, 16, 16)), method.keeps_batch_norm)
    return QuantNetwork(graph, resolve_plan(graph, wbits, abits, 8, parse_rules(rules), method.default_bits), method)


@pytest.mark.parametrize("block", ["conv_act_norm", "conv_norm_act"])
def test_plan_of_the_paper(block: str) -> None:
    plan = paper_unet(4, 6, block=block).plan
    rows = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in plan.layers}
    # First block and last layer float, the image and what is interpolated too; every batch norm writes Qi.0.
    assert rows["input"] == (None, 32)
    assert rows["enc1.conv1"] == rows["enc1.conv2"] == (32, 32)
    assert rows["head"] == (32, None)
    assert {rows[name] for name in rows if ".norm" in name} == {(32, 6)}
    assert {rows[name] for name in rows if ".conv" in name and not name.startswith("enc1")} == {(4, 32)}
    assert rows["dec1.up"] == (None, 32)
    assert plan["enc1.conv2"].note == plan["dec1.up"].note == "float in this method"
    quantized = paper_unet(4, 6, {"edges": "quantized"}, block=block).plan
    assert (quantized["enc1.conv1"].weight_bits, quantized["enc1.conv2"].weight_bits, quantized["head"].weight_bits) == (8, 4, 8)


def test_stored_widths_count_the_sign_and_the_carry() -> None:
    printed = get_method("paper").stored(paper_unet(4, 6).plan)
    # Q0.4 with its sign and 1.0: six bits; Q6.0 with its sign: seven; float stays float.
    assert (printed["enc2.conv1"].weight_bits, printed["enc2.norm1"].activation_bits) == (6, 7)
    assert (printed["enc1.conv1"].weight_bits, printed["head"].activation_bits, printed["input"].activation_bits) == (32, None, 32)
    storable = get_method("paper", {"overflow": "saturate"}).stored(paper_unet(4, 6).plan)
    assert (storable["enc2.conv1"].weight_bits, storable["enc2.norm1"].activation_bits) == (5, 7)


def image() -> Tensor:
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(4))


def test_uniform_start_is_repeatable_and_leaves_float_layers() -> None:
    first, second = paper_unet(4, 6), paper_unet(4, 6)
    before = {name: weight.detach().clone() for name, weight in first.named_weights()}
    first.calibrate([image()])
    torch.manual_seed(3)
    second.calibrate([image()])
    for (name, weight), (_, other) in zip(first.named_weights(), second.named_weights(), strict=True):
        assert torch.equal(weight, other)
        if first.weight_quantizer(name) is None:
            assert torch.equal(weight, before[name])
            continue
        # Of U(-1, 1): variance 1/3, biases 0.
        assert float(weight.detach().abs().max()) <= 1.0
        assert float(weight.detach().square().mean()) == pytest.approx(1 / 3, abs=0.08)
        assert float(first.layer_parameters(name)[1].detach().abs().max()) == 0.0
    warm = paper_unet(4, 6, {"init": "warm"})
    warm.calibrate([image()])
    assert all(torch.equal(weight, before[name]) for name, weight in warm.named_weights())


def test_what_layers_read_and_multiply_with_is_in_the_formats() -> None:
    network = paper_unet(4, 6)
    network.calibrate([image()])
    network.train()
    seen: dict[str, Tensor] = {}
    for name, module in network.activation_quantizers.items():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.detach()}))
    network(image())
    assert len(seen) > 0
    for output in seen.values():
        assert torch.equal(output, output.round())
        assert float(output.abs().max()) <= 63.0
    for name, weight in network.named_weights():
        quantizer = network.weight_quantizer(name)
        if quantizer is not None:
            sixteenths = quantizer(weight.detach()) * 16
            assert torch.equal(sixteenths, sixteenths.round())
            assert len(sixteenths.unique()) <= 33


def test_a_warm_start_is_empty_at_few_bits_and_the_uniform_start_is_not() -> None:
    # The trap: default weights of 8 input channels lie within 1/sqrt(72), below half a step of Q0.2 (1/8) up to rounding.
    for init, empty in (("warm", True), ("uniform", False)):
        network = paper_unet(2, 4, {"init": init})
        network.calibrate([image()])
        quantizer, weight = network.weight_quantizer("dec2.conv2"), dict(network.named_weights())["dec2.conv2"]
        assert quantizer is not None
        assert (float(quantizer(weight.detach()).abs().max()) == 0.0) is empty


class Plain(nn.Sequential):
    """Four convolutions, of which the one named may halve the resolution."""

    def __init__(self, strided: int | None) -> None:
        super().__init__(*(nn.Conv2d(1, 1, 3, padding=1, stride=2 if index == strided else 1) for index in range(4)))


@pytest.mark.parametrize(
    ("strided", "floats"), [(None, {"0", "1", "3"}), (0, {"0", "3"}), (1, {"0", "3"}), (2, {"0", "1", "3"}), (3, {"0", "1", "3"})]
)
def test_first_block_of_other_networks(strided: int | None, floats: set[str]) -> None:
    graph = simplify(capture(Plain(strided).eval(), torch.zeros(1, 1, 8, 8)), keep_batch_norm=True)
    plan = resolve_plan(graph, 4, 6, 8, (), get_method("paper").default_bits)
    assert {layer.name for layer in plan.layers if layer.weight_bits == 32} == floats
