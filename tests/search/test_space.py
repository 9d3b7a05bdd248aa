"""What a choice weighs, against the ledger's own count of the whole plan."""

from __future__ import annotations

import random

import pytest
import torch
from small_sessions import SMALL

from medquant.config.load import load_config
from medquant.quant.methods import get_method
from medquant.search.allocation import peak
from medquant.search.candidates import searched_candidate, uniform_candidates
from medquant.search.space import BitChoice, SearchSpace
from medquant.search.verdict import compare, sentence
from medquant.train.building import build_network, plan_network

CHOICES = (1, 2, 3, 4, 6, 8)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    config = load_config(None, overrides=(*SMALL, "model.upsample=transposed"))
    torch.manual_seed(0)
    network = build_network(config, 1, 2)
    graph, _ = plan_network(config, network, 1)
    parameters = sum(each.numel() for each in network.parameters())
    return SearchSpace(config, graph, get_method("fixed_point", {}), CHOICES, CHOICES[1:], True, parameters, (1, 1, 48, 48))


def random_choice(space: SearchSpace, draw: random.Random) -> BitChoice:
    weights = {name: draw.choice(CHOICES) for name in space.weight_layers}
    return BitChoice(weights, {name: draw.choice(CHOICES[1:]) for name in space.activation_layers})


@pytest.mark.parametrize("seed", range(5))
def test_bytes_and_peak_add_up_to_the_ledgers(space: SearchSpace, seed: int) -> None:
    choice = random_choice(space, random.Random(seed))
    ledger = space.weigh(choice)
    sizes, fixed = space.weight_sizes()
    assert fixed + sum(sizes[name][bits] for name, bits in choice.weights.items()) == ledger.parameter_bytes
    tensors, moments = space.tensors()
    assert {name: tensor.size(choice.activations) for name, tensor in tensors.items()} == {
        row.name: row.output_bytes for row in ledger.rows
    }
    assert peak(tensors, moments, choice.activations) == ledger.activation_peak_bytes


def test_a_choice_becomes_rules_that_mean_it(space: SearchSpace) -> None:
    choice = random_choice(space, random.Random(7))
    plan = space.plan(choice)
    assert {name: plan[name].weight_bits for name in space.weight_layers} == dict(choice.weights)
    assert {name: plan[name].activation_bits for name in space.activation_layers} == dict(choice.activations)


@pytest.mark.parametrize("budget", [700, 900, 1200])
def test_plans_fit_their_budget_by_the_ledger(space: SearchSpace, budget: int) -> None:
    costs = {name: {bits: 2.0**-bits * (place + 1) for bits in CHOICES} for place, name in enumerate(space.weight_layers)}
    activations = {name: {bits: 4.0**-bits for bits in CHOICES[1:]} for name in space.activation_layers}
    searched = searched_candidate(space, costs, activations, budget, 22_000, "measured")
    assert space.weigh(searched.choice).parameter_bytes == searched.parameter_bytes <= budget
    assert space.weigh(searched.choice).activation_peak_bytes == searched.activation_peak_bytes <= 22_000
    uniform = uniform_candidates(space, budget, 22_000)
    assert all(each.parameter_bytes <= budget and each.activation_peak_bytes <= 22_000 for each in uniform)
    width = next(iter(uniform[0].choice.weights.values()))
    wider = min((bits for bits in CHOICES if bits > width), default=None)
    assert wider is None or space.weigh(space.uniform(wider)).parameter_bytes > budget
    assert searched.predicted is not None
    assert all(searched.predicted <= sum(costs[name][bits] for name, bits in each.choice.weights.items()) + 1e-12 for each in uniform)


def evaluation(*scores: float) -> dict[str, object]:
    cases = [{"id": str(place), "dice": {"a": score, "b": score + 0.1}} for place, score in enumerate(scores)]
    mean = sum(scores) / len(scores)
    return {"cases": cases, "dice": {"a": {"mean": mean}, "b": {"mean": mean + 0.1}}}


def test_the_verdict_by_hand() -> None:
    # Differences of the seeds 1, 2 and 3 points: mean 2, deviation 1; t with 2 degrees of freedom 4.303: 2 ± 2.484.
    uniform = [evaluation(0.5, 0.6)] * 3
    searched = [evaluation(0.51, 0.61), evaluation(0.52, 0.62), evaluation(0.53, 0.63)]
    found = compare(searched, uniform)
    assert found.summary.mean == pytest.approx(2.0)
    assert found.summary.std == pytest.approx(1.0)
    assert found.summary.interval is not None
    assert found.summary.interval.low == pytest.approx(2 - 4.30265 / 3**0.5, abs=1e-4)
    assert not found.beats
    assert sentence(found, "S", "uniform W3", 3) == (
        "S does not beat uniform W3: +2.00 ± 1.00 points of Dice (95 % interval -0.48 to +4.48, 3 seeds); "
        "use the uniform plan (uniform.yaml)."
    )
    # One seed: over its cases, differences 2 and 3: 2.5 ± 12.706 * 0.5.
    alone = compare([evaluation(0.52, 0.63)], [evaluation(0.5, 0.6)])
    assert alone.summary.interval is not None
    assert alone.summary.interval.high == pytest.approx(2.5 + 12.7062 * 0.5, abs=1e-3)
    assert "of one seed" in sentence(alone, "S", "U", 1)
    # uniform.yaml holds one of the uniform plans: of the others nobody is sent there.
    assert sentence(found, "S", "uniform W3", 3, "").endswith("3 seeds).")
    better = compare([evaluation(0.6, 0.7), evaluation(0.61, 0.71), evaluation(0.62, 0.72)], uniform)
    assert better.beats
    assert sentence(better, "S", "U", 3).startswith("S beats U: +11.00 ± 1.00")
