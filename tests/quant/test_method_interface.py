"""What a method may decide beyond its quantizers: widths by option, float layers that meet integers, widths in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medquant.config.bits import parse_rules
from medquant.evaluate.ledger import weigh_plan
from medquant.quant import network as network_module
from medquant.quant.capture import capture
from medquant.quant.convolution import convolve
from medquant.quant.fold import simplify
from medquant.quant.graph import ConvGeometry, Graph, Operation
from medquant.quant.methods.fixed_point import FixedPoint
from medquant.quant.methods.learned_step import LearnedStep
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import QuantPlan, resolve_plan


class Skip(nn.Module):
    """A tensor and its interpolated copy meet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        second = F.relu(self.second(F.max_pool2d(first, 2)))
        logits: Tensor = self.head(torch.cat([self.up(second), first], 1))
        return logits


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return simplify(capture(Skip().eval(), torch.zeros(1, 1, 8, 8)))


def test_float_and_quantized_tensors_meet_where_no_integer_program_follows(graph: Graph) -> None:
    network = QuantNetwork(graph, resolve_plan(graph, 4, 2, 8, parse_rules(["up=/32"])), LearnedStep())
    network.calibrate([torch.randn(2, 1, 8, 8)])
    read: list[Tensor] = []

    def watch(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
        read.append(x)
        return convolve(x, weight, bias, geometry)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(network_module, "convolve", watch)
        network(torch.randn(2, 1, 8, 8))
    up, first = read[-1].split(3, 1)
    # Two bits are four levels; bilinear means of them are more.
    assert len(first.unique()) <= 4 < len(up.unique())


def test_what_a_method_sets_is_said_in_the_plan(graph: Graph) -> None:
    def chosen(site: Operation, graph: Graph, bits: tuple[int, int]) -> tuple[int, int]:
        return {"up": (bits[0], 32), "second": (2, bits[1])}.get(site.name, bits)

    plan = resolve_plan(graph, 4, 6, 4, parse_rules(["first=5/"]), chosen)
    assert {layer.name: layer.note for layer in plan.layers if layer.note} == {
        "up": "float in this method",
        "second": "this method's own width",
        "first": "set by rule",
        "input": "image: 4 bits",
    }


def test_the_ledger_counts_stored_widths(graph: Graph) -> None:
    class Wider(FixedPoint):
        def stored(self, plan: QuantPlan) -> QuantPlan:
            return QuantPlan(tuple(layer if layer.name != "second" else replace(layer, weight_bits=6) for layer in plan.layers))

    plan = resolve_plan(graph, 4, 6, 8)
    narrow, wide = (weigh_plan(graph, method.stored(plan), 0, 4, (1, 1, 8, 8)) for method in (FixedPoint(), Wider()))
    # 81 weights: 324 bits are 41 bytes, 486 bits are 61.
    assert wide.parameter_bytes - narrow.parameter_bytes == 61 - 41
