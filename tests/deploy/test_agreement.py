"""Simulation against program, value by value: none differs where they are one network, each that does is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medquant.config.bits import parse_rule
from medquant.deploy.agreement import Agreement, check_agreement
from medquant.models import build_model
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
from medquant.quant.program import ConvolutionNode, IntegerProgram


def _network(outputs: int, wbits: int = 4, abits: int = 6, rules: tuple[str, ...] = ()) -> QuantNetwork:
    torch.manual_seed(1)
    network = build_model(in_channels=1, out_channels=outputs, channels=2, depth=2)
    graph = simplify(capture(network, torch.zeros(2, 1, 4, 4)))
    quantized = QuantNetwork(graph, resolve_plan(graph, wbits, abits, 8, [parse_rule(rule) for rule in rules]), get_method("fixed_point"))
    quantized.calibrate([torch.from_numpy(_images(2, seed=1))])
    return quantized


def _images(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 1, 16, 12)).astype(np.float32)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("wbits", "abits", "rules"), [(4, 6, ()), (1, 1, ()), (8, 8, ()), (2, 3, ("head=5/", "bottom*=8/2"))])
def test_simulation_and_program_agree_in_every_value(outputs: int, wbits: int, abits: int, rules: tuple[str, ...]) -> None:
    network = _network(outputs, wbits, abits, rules)
    assert check_agreement(network, lower(network), _images(3)) == Agreement(checked=3 * outputs * 16 * 12, differing=0)


def _with_head_bias(program: IntegerProgram, change: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> IntegerProgram:
    head = program.nodes[-1]
    assert isinstance(head, ConvolutionNode)
    return replace(program, nodes=(*program.nodes[:-1], replace(head, bias=head.bias + change)))


def test_every_value_that_differs_is_counted() -> None:
    network = _network(3)
    # The smallest bias there is, added to one of three outputs, moves each of its values and no other.
    changed = _with_head_bias(lower(network), np.array([0, 1, 0]))
    assert check_agreement(network, changed, _images(2)) == Agreement(checked=2 * 3 * 16 * 12, differing=2 * 16 * 12)


def test_a_network_in_training_mode_is_compared_in_evaluation() -> None:
    network = _network(1)
    program = lower(network)
    network.train()
    assert check_agreement(network, program, _images(1)).differing == 0


def test_no_image_means_nothing_checked() -> None:
    network = _network(1)
    assert check_agreement(network, lower(network), _images(0)) == Agreement(0, 0)
