"""Hutchinson's estimate against the trace of the Hessian that torch writes out in full."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medquant.config.bits import parse_rule
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.search.hessian import Trace, squared_error, trace_sample
from medquant.train.losses import segmentation_loss


def small_network(rule: str = "*=32/32") -> QuantNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1)).eval()
    graph = simplify(capture(model, torch.zeros(2, 1, 8, 8)))
    method = get_method("fixed_point", {})
    return QuantNetwork(graph, resolve_plan(graph, 4, 6, 8, [parse_rule("*=32/32"), parse_rule(rule)]), method).eval()


def exact_traces(network: QuantNetwork, images: Tensor, labels: Tensor) -> dict[str, float]:
    found = {}
    for name, weight in network.named_weights():
        key = next(key for key, parameter in network.named_parameters() if parameter is weight)

        def loss(changed: Tensor, key: str = key) -> Tensor:
            return segmentation_loss(functional_call(network, {key: changed}, (images,)), labels)

        hessian = torch.autograd.functional.hessian(loss, weight.detach())
        found[name] = float(hessian.reshape(weight.numel(), weight.numel()).trace())
    return found


def test_the_mean_over_vectors_is_the_trace() -> None:
    network = small_network()
    images, labels = torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 8, 8))
    exact = exact_traces(network, images, labels)
    samples = [trace_sample(network, images, labels, number) for number in range(300)]
    traces = {name: Trace(tuple(each[name] for each in samples), 1) for name in exact}
    assert all(abs(traces[name].mean - expected) < 4 * traces[name].standard_error for name, expected in exact.items())
    # And that is no wide margin where the trace is large.
    assert any(4 * traces[name].standard_error < 0.5 * expected for name, expected in exact.items())


def test_the_same_number_gives_the_same_vector() -> None:
    network = small_network()
    images, labels = torch.randn(1, 1, 8, 8), torch.randint(0, 2, (1, 8, 8))
    assert trace_sample(network, images, labels, 3) == trace_sample(network, images, labels, 3)
    assert trace_sample(network, images, labels, 3) != trace_sample(network, images, labels, 4)


def test_expected_rise_and_standard_error_by_hand() -> None:
    # Mean 4, deviations -2, 0, 2: variance 4, error of the mean 2 / sqrt(3); half of 4 / 8 weights times 0.5 is 0.125.
    trace = Trace((2.0, 4.0, 6.0), 8)
    assert abs(trace.standard_error - (4 / 3) ** 0.5) < 1e-12
    assert trace.expected_rise(0.5) == 0.125
    # A trace below 0 counts as its standard error, 2 / sqrt(2).
    assert Trace((-3.0, -1.0), 1).expected_rise(2.0) == 1.0


def test_squared_error_of_weights_by_hand() -> None:
    network = small_network()
    convolutions = [operation.name for operation in network.graph.convolutions]
    assert [squared_error(network, name) for name in convolutions] == [0.0, 0.0]
    network = small_network(f"{convolutions[1]}=2/")
    with torch.no_grad():
        network.parameters_of(convolutions[1])[0].copy_(torch.tensor([0.5, 0.2]).reshape(1, 2, 1, 1))
    network.calibrate([torch.randn(1, 1, 8, 8)])
    # Two bits: -2, -1, 0, 1 times a power of two. 0.5 as 1 and 0.2 as 0 leave 0.04; at 0.25, 0.25 and 0.25 leave 0.065.
    assert abs(squared_error(network, convolutions[1]) - 0.04) < 1e-6
