"""The integer programs against every plan there is, on instances small enough to list them."""

from __future__ import annotations

import itertools
import random

import pytest

from medquant.errors import UsageError
from medquant.search.allocation import Tensor, allocate_activations, allocate_weights, peak

CHOICES = (1, 2, 4, 8)


def random_costs(draw: random.Random, layers: int) -> dict[str, dict[int, float]]:
    # Not monotone on purpose: the program must not rely on it.
    return {f"l{number}": {bits: draw.uniform(0, 3) ** 4 * 10.0 ** draw.randint(-6, 0) for bits in CHOICES} for number in range(layers)}


def plans(costs: dict[str, dict[int, float]]) -> list[dict[str, int]]:
    return [dict(zip(costs, bits, strict=True)) for bits in itertools.product(CHOICES, repeat=len(costs))]


def cost(costs: dict[str, dict[int, float]], bits: dict[str, int]) -> float:
    return sum(costs[name][width] for name, width in bits.items())


@pytest.mark.parametrize("seed", range(12))
def test_weights_are_the_best_of_all_plans(seed: int) -> None:
    draw = random.Random(seed)
    costs = random_costs(draw, 4)
    sizes = {name: {bits: -(-draw.randint(9, 5000) * bits // 8) for bits in CHOICES} for name in costs}
    fixed = draw.randint(0, 500)

    def size(bits: dict[str, int]) -> int:
        return fixed + sum(sizes[name][width] for name, width in bits.items())

    budget = draw.randint(min(map(size, plans(costs))), max(map(size, plans(costs))))
    best = min(cost(costs, bits) for bits in plans(costs) if size(bits) <= budget)
    found = allocate_weights(costs, sizes, budget, fixed)
    assert cost(costs, dict(found.bits)) == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert found.size_bytes == size(dict(found.bits)) <= budget


def test_a_larger_budget_is_never_worse() -> None:
    draw = random.Random(3)
    costs = random_costs(draw, 12)
    sizes = {name: {bits: -(-draw.randint(9, 5000) * bits // 8) for bits in CHOICES} for name in costs}
    smallest, largest = (sum(pick(each.values()) for each in sizes.values()) for pick in (min, max))
    found = [allocate_weights(costs, sizes, budget).cost for budget in range(smallest, largest + 1, (largest - smallest) // 15)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found))
    assert found[0] > found[-1]


def test_one_byte_under_the_best_plan_gives_another() -> None:
    # 10 bytes for the good width of either layer, 1 for the bad one: 20 holds both, 19 the dearer of them alone.
    costs, sizes = {"a": {1: 5.0, 8: 0.0}, "b": {1: 3.0, 8: 0.0}}, {"a": {1: 1, 8: 10}, "b": {1: 1, 8: 10}}
    assert allocate_weights(costs, sizes, 20).bits == {"a": 8, "b": 8}
    assert allocate_weights(costs, sizes, 19).bits == {"a": 8, "b": 1}
    assert allocate_weights(costs, sizes, 10).bits == {"a": 1, "b": 1}


def test_a_budget_below_the_smallest_plan_names_it() -> None:
    with pytest.raises(UsageError, match=r"takes 102;"):
        allocate_weights({"a": {1: 1.0, 2: 0.0}}, {"a": {1: 2, 2: 4}}, 101, fixed=100)


def random_run(draw: random.Random, costs: dict[str, dict[int, float]]) -> tuple[dict[str, Tensor], list[tuple[str, ...]]]:
    """A chain with skips: each tensor, the join of two of them, a part of fixed width, an accumulator."""
    tensors = {name: Tensor((name,), {bits: draw.randint(50, 400) * bits for bits in CHOICES}) for name in costs}
    first, *_, second = costs
    tensors["joined"] = Tensor((first, second), {bits: 900 * bits for bits in CHOICES})
    tensors["half"] = Tensor((first,), {bits: 500 * bits for bits in CHOICES}, fixed=1500)
    tensors["sums"] = Tensor((), {}, fixed=640)
    names = list(tensors)
    moments = [tuple(draw.sample(names, draw.randint(2, len(names)))) for _ in range(5)]
    return tensors, moments


@pytest.mark.parametrize("seed", range(12))
def test_activations_are_the_best_of_all_plans(seed: int) -> None:
    draw = random.Random(100 + seed)
    costs = random_costs(draw, 4)
    tensors, moments = random_run(draw, costs)
    peaks = [peak(tensors, moments, bits) for bits in plans(costs)]
    budget = draw.randint(min(peaks), max(peaks))
    best = min(cost(costs, bits) for bits, size in zip(plans(costs), peaks, strict=True) if size <= budget)
    found = allocate_activations(costs, tensors, moments, budget)
    assert cost(costs, dict(found.bits)) == pytest.approx(best, rel=1e-9, abs=1e-15)
    assert found.size_bytes == peak(tensors, moments, found.bits) <= budget


def test_a_joined_tensor_is_as_wide_as_its_widest_part() -> None:
    tensor = Tensor(("a", "b"), {2: 20, 8: 80}, fixed=30)
    assert tensor.size({"a": 2, "b": 8}) == 80
    assert tensor.size({"a": 2, "b": 2}) == 30


def test_an_activation_budget_below_every_peak_names_the_smallest() -> None:
    tensors = {"a": Tensor(("a",), {2: 20, 8: 80}), "sums": Tensor((), {}, fixed=7)}
    with pytest.raises(UsageError, match=r"smallest peak, 27;"):
        allocate_activations({"a": {2: 1.0, 8: 0.0}}, tensors, [("a", "sums")], 26)
