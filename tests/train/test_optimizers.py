"""Which parameter learns at which rate."""

from __future__ import annotations

import torch
from torch import nn

from medquant.config.schema import QuantConfig
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.methods.base import WeightSite
from medquant.quant.methods.fixed_point import FixedPoint
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.train.optimizers import make_optimizer


class Scaled(FixedPoint):
    """The first layer ten times as fast with Adam, a hundred times with SGD."""

    def learning_rate_scale(self, site: WeightSite, optimizer: str) -> float:
        return (100.0 if optimizer == "sgd" else 10.0) if site.name == "0" else 1.0


def network() -> QuantNetwork:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
    graph = simplify(capture(model, torch.zeros(1, 1, 8, 8)))
    return QuantNetwork(graph, resolve_plan(graph, 4, 6, 8), Scaled())


def test_every_parameter_is_in_one_group_at_its_rate() -> None:
    net = network()
    for name, kind, scale in (("adamw", torch.optim.AdamW, 10.0), ("sgd", torch.optim.SGD, 100.0)):
        optimizer = make_optimizer(net, 0.1, QuantConfig(optimizer=name, step_lr_scale=3.0))
        assert isinstance(optimizer, kind)
        scales = {id(parameter): group["scale"] for group in optimizer.param_groups for parameter in group["params"]}
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(scales)
        assert set(scales) == {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
        first, second = (weight for _, weight in net.named_weights())
        assert (scales[id(first)], scales[id(second)]) == (scale, 1.0)
        assert {scales[id(step)] for step in net.step_parameters()} == {3.0}
        decay = [group["weight_decay"] for group in optimizer.param_groups]
        assert decay == [0.1, 0.0, 0.0]


def test_a_float_network_has_one_group() -> None:
    model = nn.Conv2d(1, 2, 3)
    (group,) = make_optimizer(model, 0.2, None).param_groups
    assert (len(group["params"]), group["scale"], group["weight_decay"]) == (2, 1.0, 0.2)
