"""The plans that are trained: what the search found, and uniform plans of no more bytes to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medquant.errors import UsageError
from medquant.search.allocation import Allocation, Costs, allocate_activations, allocate_weights, peak
from medquant.search.space import BitChoice, SearchSpace

_EDGE_BITS = 8
# Plans whose bytes differ by less count as equally large.
_SAME_BYTES = 0.01


@dataclass(frozen=True)
class Candidate:
    """A plan to train.

    Args:
        label: what tables call it.
        slug: short name without spaces, for folders.
        channels: width of the network.
        choice: the bits.
        parameter_bytes: the ledger's figure.
        activation_peak_bytes: the ledger's figure for the image of the space.
        searched: whether the search made it; False for what it is compared with.
        predicted: summed sensitivity, None where it was not asked.
    """

    label: str
    slug: str
    channels: int
    choice: BitChoice
    parameter_bytes: int
    activation_peak_bytes: int
    searched: bool
    predicted: float | None = None


def searched_candidate(
    space: SearchSpace, costs: Costs, activation_costs: Costs, budget: int, activation_budget: int | None, name: str
) -> Candidate:
    """The allocation of least summed sensitivity within both budgets.

    Raises:
        UsageError: the smallest plan is over a budget.
    """
    allocation = searched_weights(space, costs, budget)
    activations = {} if activation_budget is None else searched_activations(space, activation_costs, activation_budget).bits
    choice = BitChoice(allocation.bits, activations)
    return _candidate(space, choice, f"searched ({name})", f"{name}-{choice.digest}", searched=True, predicted=allocation.cost)


def searched_weights(space: SearchSpace, costs: Costs, budget: int) -> Allocation:
    """The weight bits of least summed sensitivity."""
    sizes, fixed = space.weight_sizes()
    return allocate_weights(_only(costs, sizes), sizes, budget, fixed)


def searched_activations(space: SearchSpace, costs: Costs, budget: int) -> Allocation:
    """The activation bits of least summed sensitivity."""
    tensors, moments = space.tensors()
    choices = set(space.activation_choices)
    chosen = {name: {bits: cost for bits, cost in costs[name].items() if bits in choices} for name in space.activation_layers}
    return allocate_activations(chosen, tensors, moments, budget)


def smallest_bytes(space: SearchSpace) -> int:
    """Bytes of the smallest plan."""
    sizes, fixed = space.weight_sizes()
    return fixed + sum(min(each.values()) for each in sizes.values())


def largest_bytes(space: SearchSpace) -> int:
    """Bytes of the largest plan."""
    sizes, fixed = space.weight_sizes()
    return fixed + sum(max(each.values()) for each in sizes.values())


def smallest_peak(space: SearchSpace) -> int:
    """The smallest activation peak."""
    tensors, moments = space.tensors()
    return peak(tensors, moments, dict.fromkeys(space.activation_layers, space.activation_choices[0]))


def uniform_candidates(space: SearchSpace, budget: int, activation_budget: int | None) -> list[Candidate]:
    """Plans nobody needs a search for, each as wide as the budget allows.

    The widest uniform width; the widest with 8-bit edges, which is how ``medquant train`` does it; and, where uniform leaves more
    than a hundredth of the budget, uniform with the rest spent from the first layer on.
    """
    activations = {} if activation_budget is None else _uniform_activations(space, activation_budget)
    sizes, fixed = space.weight_sizes()

    def total(bits: Mapping[str, int]) -> int:
        return fixed + sum(sizes[name][width] for name, width in bits.items())

    plain = [space.uniform(bits).weights for bits in space.weight_choices]
    uniform = max((bits for bits in plain if total(bits) <= budget), key=total)
    width = next(iter(uniform.values()))
    found = [(f"uniform W{width}", f"w{width}", dict(uniform))]
    if space.edges_open and _EDGE_BITS in space.weight_choices:
        edges = [space.weight_layers[0], space.weight_layers[-1]]
        wide = [{**bits, **dict.fromkeys(edges, _EDGE_BITS)} for bits in plain]
        if fitting := [bits for bits in wide if total(bits) <= budget]:
            best = max(fitting, key=total)
            inner = min(best.values())
            found.append((f"uniform W{inner}, edges W{_EDGE_BITS}", f"w{inner}-edges", best))
    if total(uniform) < (1 - _SAME_BYTES) * budget and width < space.weight_choices[-1]:
        filled = dict(uniform)
        for name in filled:
            for bits in space.weight_choices:
                if bits > filled[name] and total({**filled, name: bits}) <= budget:
                    filled[name] = bits
        found.append((f"uniform W{width}, rest to the first layers", f"w{width}-filled", filled))
    made: dict[str, Candidate] = {}
    for label, slug, chosen in found:
        choice = BitChoice(chosen, activations)
        made.setdefault(choice.digest, _candidate(space, choice, label, f"{slug}-{choice.digest}", searched=False))
    return list(made.values())


def _uniform_activations(space: SearchSpace, budget: int) -> dict[str, int]:
    """The widest activations of one width that fit, the image at 8 bits where that fits as well."""
    tensors, moments = space.tensors()
    sites = space.activation_layers
    plans = []
    for bits in reversed(space.activation_choices):
        one = dict.fromkeys(sites, bits)
        if _EDGE_BITS in space.activation_choices and space.image in one:
            plans.append({**one, space.image: _EDGE_BITS})
        plans.append(one)
    for each in plans:
        if peak(tensors, moments, each) <= budget:
            return each
    raise UsageError(f"an activation budget of {budget:,} bytes is below the smallest peak, {smallest_peak(space):,}; give at least that")


def _candidate(space: SearchSpace, choice: BitChoice, label: str, slug: str, searched: bool, predicted: float | None = None) -> Candidate:
    ledger = space.weigh(choice)
    channels = space.config.model.channels
    return Candidate(label, slug, channels, choice, ledger.parameter_bytes, ledger.activation_peak_bytes, searched, predicted)


def _only(costs: Costs, sizes: Mapping[str, Mapping[int, int]]) -> Costs:
    """The costs of what is open now: a file of measurements may hold more widths."""
    return {name: {bits: costs[name][bits] for bits in each} for name, each in sizes.items()}
