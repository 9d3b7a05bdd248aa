"""BinaryConnect against closed forms: the hard sigmoid's probabilities, Glorot's coefficient by hand, averages taken by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.schema import QuantConfig
from medquant.errors import ConfigError
from medquant.quant.binarize import binarize, binarize_randomly, glorot_coefficient, glorot_rate, hard_sigmoid, sign
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.methods import get_method
from medquant.quant.methods.base import WeightSite
from medquant.quant.methods.binary import BinaryWeight
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.train.optimizers import make_optimizer

SITE = WeightSite("middle", (5, 4, 3, 3), 0, 1)


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 2, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.relu(self.norm2(self.middle(F.relu(self.norm1(self.first(x)))))))
        return logits


def network(wbits: int = 1, abits: int = 32, edge_bits: int = 8, **options: object) -> QuantNetwork:
    torch.manual_seed(0)
    method = get_method("binary", options)
    graph = simplify(capture(Three().eval(), torch.zeros(2, 1, 8, 8)), method.keeps_batch_norm)
    net = QuantNetwork(graph, resolve_plan(graph, wbits, abits, edge_bits, (), method.default_bits), method)
    net.calibrate([images(1)])
    return net


def images(seed: int) -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def step(net: QuantNetwork, optimiser: torch.optim.Optimizer, seed: int) -> None:
    net.train()
    net.before_step(0.0)
    net(images(seed)).square().mean().backward()
    net.after_backward()
    optimiser.step()
    net.after_step()
    optimiser.zero_grad()


def test_signs_and_their_gradients() -> None:
    weight = torch.tensor([-3.0, -0.1, -0.0, 0.0, 0.2, 5.0], requires_grad=True)
    binary = binarize(weight, 0.5)
    assert binary.tolist() == [-0.5, -0.5, 0.5, 0.5, 0.5, 0.5]
    (binary * torch.arange(6.0)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]  # as it is, beyond H too: clipping the weight is another matter


def test_binary_activations_let_the_gradient_through_between_minus_one_and_one() -> None:
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 1.0, 1.5], requires_grad=True)
    y = sign(x)
    assert y.tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(("weight", "chance"), [(-0.4, 0.1), (0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.7, 1.0), (-0.6, 0.0)])
def test_random_signs_follow_the_hard_sigmoid(weight: float, chance: float) -> None:
    count, scale = 100_000, 0.5
    assert hard_sigmoid(torch.tensor(weight / scale)).item() == pytest.approx(chance, abs=1e-6)
    torch.manual_seed(3)
    drawn = binarize_randomly(torch.full((count,), weight), scale)
    assert set(drawn.tolist()) <= {-0.5, 0.5}
    ups = int((drawn > 0).sum())
    # Five standard deviations of a binomial count; none at all where the chance is 0 or 1.
    assert abs(ups - count * chance) <= 5 * math.sqrt(count * chance * (1 - chance))


def test_draws_come_from_torch_so_that_a_resumed_run_repeats_them() -> None:
    weight = torch.zeros(1000)
    state = torch.get_rng_state()
    first = binarize_randomly(weight, 1.0)
    assert not torch.equal(first, binarize_randomly(weight, 1.0))
    torch.set_rng_state(state)
    assert torch.equal(first, binarize_randomly(weight, 1.0))


def test_glorot_coefficient_and_rates_by_hand() -> None:
    # 4 channels in, 5 out, 3 × 3: fan-in 36, fan-out 45; sqrt(1.5 / 81) = 0.136083.
    assert (SITE.fan_in, SITE.fan_out) == (36, 45)
    assert glorot_coefficient(36, 45) == pytest.approx(0.1360828, abs=1e-6)
    assert 2 * glorot_coefficient(36, 45) == pytest.approx(math.sqrt(6 / 81))  # the limit of torch's xavier_uniform_
    assert glorot_rate(36, 45, squared=False) == pytest.approx(math.sqrt(54))
    assert glorot_rate(36, 45, squared=True) == pytest.approx(54)
    method = get_method("binary")
    assert method.learning_rate_scale(SITE, "adamw") == pytest.approx(math.sqrt(54))
    assert method.learning_rate_scale(SITE, "sgd") == pytest.approx(54)
    assert get_method("binary", {"W_LR_scale": 3.0}).learning_rate_scale(SITE, "sgd") == 3.0


def test_rates_reach_the_optimiser_and_binary_weights_do_not_decay() -> None:
    net = network()
    groups = make_optimizer(net, 0.01, QuantConfig(method="binary", wbits=1, abits=32)).param_groups
    by_weight = {id(parameter): (group["scale"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    middle = dict(net.named_weights())["middle"]
    assert by_weight[id(middle)] == (pytest.approx(math.sqrt(54)), 0.0)
    assert by_weight[id(next(iter(net.biases.values())))] == (1.0, 0.01)


@pytest.mark.parametrize("scale", [1.0, 0.25, "glorot"])
def test_real_weights_start_with_the_spread_of_the_uniform_distribution(scale: float | str) -> None:
    for init in ("warm_start", "uniform"):
        quantizer = get_method("binary", {"H": scale, "init": init}).weight(WeightSite("wide", (64, 32, 3, 3), 0, 1))
        assert isinstance(quantizer, BinaryWeight)
        limit = math.sqrt(1.5 / (288 + 576)) if scale == "glorot" else float(scale)
        assert quantizer.scale == pytest.approx(limit)
        trained = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.02
        weight = trained.clone()
        quantizer.initialise(weight)
        assert weight.abs().max() <= limit
        # U(-H, H) has H / sqrt(3); clipping the tails of a normal distribution at 1.73 sigma takes 8 % of its rms.
        assert weight.square().mean().sqrt().item() == pytest.approx(limit / math.sqrt(3), rel=0.01 if init == "uniform" else 0.1)
        assert bool((torch.sign(weight) == torch.sign(trained)).all()) == (init == "warm_start")


def test_uniform_start_depends_on_seed_and_name_alone() -> None:
    def start(seed: int, name: str, draws: int) -> Tensor:
        torch.manual_seed(seed)
        torch.rand(draws)
        weight = torch.zeros(3, 4)
        get_method("binary", {"init": "uniform"}).weight(WeightSite(name, (3, 4), 0, 1)).initialise(weight)
        return weight

    assert torch.equal(start(1, "a", 0), start(1, "a", 7))
    assert not torch.equal(start(1, "a", 0), start(1, "b", 0))
    assert not torch.equal(start(1, "a", 0), start(2, "a", 0))


def test_real_weights_are_clipped_after_each_step() -> None:
    net = network(H=0.5)
    optimiser = torch.optim.SGD(net.parameters(), 10.0)
    step(net, optimiser, 2)
    for _, weight in net.named_weights():
        assert weight.abs().max() == 0.5  # a rate of 10 throws some of them out


def test_every_convolution_is_binary_and_batch_norm_float() -> None:
    net = network(abits=32)
    assert [(layer.name, layer.weight_bits, layer.activation_bits) for layer in net.plan.layers] == [
        ("input", None, 32),
        ("first", 1, 32),
        ("norm1", 32, 32),
        ("middle", 1, 32),
        ("norm2", 32, 32),
        ("last", 1, None),
    ]
    assert [layer.weight_bits for layer in network(edges="float").plan.layers if layer.name in ("first", "middle", "last")] == [32, 1, 32]
    assert {tuple(sorted(set(quantizer(weight).flatten().tolist()))) for quantizer, weight in _layers(net)} == {(-1.0, 1.0)}
    with pytest.raises(ConfigError, match="middle: method binary has weights of 1 or 32 bits; found 4"):
        network(wbits=4)


def _layers(net: QuantNetwork) -> list[tuple[BinaryWeight, Tensor]]:
    pairs = [(net.weight_quantizer(name), weight) for name, weight in net.named_weights()]
    return [(quantizer, weight) for quantizer, weight in pairs if isinstance(quantizer, BinaryWeight)]


@pytest.mark.parametrize("abits", [1, 2, 8])
def test_activations_have_as_many_values_as_bits_say(abits: int) -> None:
    net = network(abits=abits).eval()
    written: list[Tensor] = []
    net.activation_quantizers["norm1"].register_forward_hook(lambda module, inputs, output: written.append(output))
    net(images(2))
    values = set(written[0].flatten().tolist())
    assert len(values) <= 2**abits
    assert values == {-1.0, 1.0} if abits == 1 else min(values) == 0.0  # the sign stands in place of the rectifier


def _by_hand(net: QuantNetwork, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The network of ``Three`` written out, with these weights."""
    for name in ("first", "middle"):
        norm = net.norms["norm1" if name == "first" else "norm2"]
        x = F.conv2d(x, weights[name], net.biases[name], padding=1)
        x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))
    return F.conv2d(x, weights["last"], net.biases["last"])


def test_real_weights_outside_training() -> None:
    for options in ({"test_weights": "real"}, {"binarization": "stochastic"}):
        net = network(**options).eval()
        expected = _by_hand(net, images(2), dict(net.named_weights()))
        assert torch.allclose(net(images(2)), expected, atol=1e-5)
    net = network().eval()
    signs = {name: torch.where(weight >= 0, 1.0, -1.0) for name, weight in net.named_weights()}
    assert torch.allclose(net(images(2)), _by_hand(net, images(2), signs), atol=1e-4)


def test_ensemble_is_the_average_of_the_sampled_networks_and_repeats() -> None:
    net = network(test_weights="ensemble", ensemble=3).eval()
    sampled = []
    for index in range(3):
        net.controller.before_pass(net, index)
        sampled.append({name: net.weight_quantizer(name)(weight).detach() for name, weight in net.named_weights()})  # type: ignore[misc]
    assert not torch.equal(sampled[0]["middle"], sampled[1]["middle"])
    expected = sum(_by_hand(net, images(2), weights) for weights in sampled) / 3
    state = torch.get_rng_state()
    output = net(images(2))
    assert torch.allclose(output, expected, atol=1e-4)
    assert torch.equal(output, net(images(2)))
    assert torch.equal(state, torch.get_rng_state())  # training must not notice that it was scored


def test_large_ensemble_comes_to_the_expected_weight() -> None:
    quantizer = get_method("binary", {"test_weights": "ensemble", "ensemble": 1000}).weight(WeightSite("layer", (1, 40), 0, 1)).eval()
    assert isinstance(quantizer, BinaryWeight)
    weight = torch.linspace(-0.9, 0.9, 40).reshape(1, 40)
    total = torch.zeros(1, 40)
    for index in range(1000):
        quantizer.pass_index = index
        total += quantizer(weight)
    # The mean of ±1 drawn with chance (w + 1) / 2 is w; its standard deviation is below 1 / sqrt(1000).
    assert (total / 1000 - weight).abs().max() < 5 / math.sqrt(1000)


def test_calibration_measures_with_the_rescaled_weights() -> None:
    net = network(abits=8).eval()
    written: list[tuple[Tensor, Tensor]] = []
    net.activation_quantizers["norm2"].register_forward_hook(lambda module, inputs, output: written.append((inputs[0], output)))
    net(images(1))
    x, y = written[0]
    # 8 bits over the observed range: the error is below 1 % of the values' spread.
    assert (F.relu(x) - y).abs().mean() < 0.01 * F.relu(x).std()
