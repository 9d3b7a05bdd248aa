"""Which bits each layer gets, as integer programs: least summed sensitivity within a budget of bytes.

After HAWQ-v3 (Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML 2021, section 3.4): one binary variable for each
layer and width. Weights have one budget, that of all that is stored; activations have one for every moment of the run, because
only what is alive at once must fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.errors import ConfigError, UsageError

Costs = Mapping[str, Mapping[int, float]]
"""Layer → width → what that width costs in loss."""

Sizes = Mapping[str, Mapping[int, int]]
"""Layer → width → bytes."""

# The solver stops within 1e-6 of the best objective; costs are scaled so that this is nothing.
_LARGEST_COST = 1e4


@dataclass(frozen=True)
class Allocation:
    """The widths that were chosen.

    Args:
        bits: layer → width.
        cost: summed sensitivity.
        size_bytes: bytes of what was chosen: stored weights, or the largest sum of tensors alive at once.
    """

    bits: Mapping[str, int]
    cost: float
    size_bytes: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the run, for its size.

    Args:
        sources: sites whose values it holds; it is as wide as the widest.
        sizes: bytes by width.
        fixed: bytes of a part nobody chooses the width of; the tensor is at least as large.
    """

    sources: tuple[str, ...]
    sizes: Mapping[int, int]
    fixed: int = 0

    def size(self, bits: Mapping[str, int]) -> int:
        """Bytes under a choice of widths."""
        return max([self.fixed, *(self.sizes[bits[source]] for source in self.sources)])


def allocate_weights(costs: Costs, sizes: Sizes, budget: int, fixed: int = 0) -> Allocation:
    """The widths of least summed cost whose bytes fit.

    Args:
        costs: of each layer and width.
        sizes: bytes likewise; the same layers and widths.
        budget: bytes in all.
        fixed: bytes that are there whatever is chosen.

    Raises:
        UsageError: the smallest plan does not fit; its bytes are named.
    """
    smallest = fixed + sum(min(each.values()) for each in sizes.values())
    if smallest > budget:
        raise UsageError(f"a budget of {budget:,} bytes is below the smallest plan, which takes {smallest:,}; give at least that many")
    program = _Program(costs)
    row = program.row({name: dict(each) for name, each in sizes.items()})
    # Solvers take a value within 1e-6 of 1 for 1: what comes out is counted in whole bytes, and the bound drawn in where it is over.
    bound = budget - fixed
    while True:
        program.bounds = [(row, float(bound))]
        bits = program.solve()
        size = fixed + sum(sizes[name][width] for name, width in bits.items())
        if size <= budget:
            return Allocation(bits, _cost(costs, bits), size)
        bound -= size - budget


def allocate_activations(costs: Costs, tensors: Mapping[str, Tensor], moments: Sequence[Sequence[str]], budget: int) -> Allocation:
    """The widths of least summed cost under which no moment of the run holds more than the budget.

    Args:
        costs: of each site and width.
        tensors: name → tensor.
        moments: the tensors alive at once, for every step of the run.
        budget: bytes alive at once.

    Raises:
        UsageError: with the narrowest widths, some moment still holds more; its bytes are named.
    """
    narrowest = {name: min(each) for name, each in costs.items()}
    smallest = peak(tensors, moments, narrowest)
    if smallest > budget:
        raise UsageError(
            f"an activation budget of {budget:,} bytes is below the smallest peak, {smallest:,}; give at least that many, "
            "or a smaller patch or network"
        )
    if not costs:
        return Allocation({}, 0.0, smallest)
    program = _Program(costs)
    joined = [name for name, tensor in tensors.items() if len(tensor.sources) > 1 or (tensor.sources and tensor.fixed)]
    extra = {name: program.add_size(tensors[name]) for name in joined}
    rows = []
    for moment in moments:
        row, constant = program.empty_row(), 0
        for name in moment:
            tensor = tensors[name]
            if name in extra:
                row[extra[name]] += 1.0
            elif tensor.sources:
                row += program.row({tensor.sources[0]: tensor.sizes})
            else:
                constant += tensor.fixed
        rows.append((row, constant))
    bound = budget
    while True:
        program.bounds = [(program.widened(row), float(bound - constant)) for row, constant in rows]
        bits = program.solve()
        size = peak(tensors, moments, bits)
        if size <= budget:
            return Allocation(bits, _cost(costs, bits), size)
        bound -= size - budget


def peak(tensors: Mapping[str, Tensor], moments: Sequence[Sequence[str]], bits: Mapping[str, int]) -> int:
    """The largest sum of tensors alive at once under a choice of widths, bytes."""
    sizes = {name: tensor.size(bits) for name, tensor in tensors.items()}
    return max(sum(sizes[name] for name in moment) for moment in moments)


def _cost(costs: Costs, bits: Mapping[str, int]) -> float:
    return sum(costs[name][width] for name, width in bits.items())


class _Program:
    """Binary variables a (layer, width), one of each layer chosen; sizes of joined tensors as further, continuous variables.

    Args:
        costs: the objective.
    """

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.places = {(name, width): i for i, (name, width) in enumerate((n, w) for n, each in costs.items() for w in each)}
        self.count = len(self.places)
        self.bounds: list[tuple[NDArray[np.float64], float]] = []
        self._at_least: list[tuple[int, NDArray[np.float64], float]] = []

    def empty_row(self) -> NDArray[np.float64]:
        """Coefficients of a constraint, all 0, for the variables there are so far."""
        return np.zeros(self.count)

    def row(self, sizes: Mapping[str, Mapping[int, int]]) -> NDArray[np.float64]:
        """Coefficients that add up the bytes of what is chosen."""
        row = self.empty_row()
        for name, each in sizes.items():
            for width, size in each.items():
                if (name, width) in self.places:
                    row[self.places[name, width]] = size
        return row

    def widened(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """A row made before the last variables came, with 0 for those."""
        return np.concatenate([row, np.zeros(self.count - len(row))])

    def add_size(self, tensor: Tensor) -> int:
        """A variable that is no smaller than the tensor is under each of its sources; its place."""
        place = self.count
        self.count += 1
        rows = [(self.row({source: tensor.sizes}), 0.0) for source in tensor.sources]
        self._at_least += [(place, row, low) for row, low in [*rows, (self.empty_row(), float(tensor.fixed))]]
        return place

    def solve(self) -> dict[str, int]:
        """The widths of least cost within the bounds.

        Raises:
            ConfigError: the solver found none.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp

        binary = len(self.places)
        flat = np.array([self.costs[name][width] for name, width in self.places], dtype=np.float64)
        if not np.isfinite(flat).all():
            raise ConfigError("a sensitivity is not a finite number; measure again in another --out")
        objective = self.widened(flat * (_LARGEST_COST / max(float(np.abs(flat).max()), 1e-300)))
        constraints = [LinearConstraint(self._one_of_each(), 1.0, 1.0)]
        constraints += [LinearConstraint(self.widened(row), -np.inf, bound) for row, bound in self.bounds]
        for place, row, low in self._at_least:
            above = -self.widened(row)
            above[place] = 1.0
            constraints.append(LinearConstraint(above, low, np.inf))
        integrality = np.concatenate([np.ones(binary), np.zeros(self.count - binary)])
        highest = np.concatenate([np.ones(binary), np.full(self.count - binary, np.inf)])
        found = milp(
            objective,
            integrality=integrality,
            bounds=Bounds(np.zeros(self.count), highest),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise ConfigError(f"the integer program has no solution ({found.message}); give a larger budget")
        return {name: max(self.costs[name], key=lambda width: found.x[self.places[name, width]]) for name in self.costs}

    def _one_of_each(self) -> NDArray[np.float64]:
        names = list(self.costs)
        rows = np.zeros((len(names), self.count))
        for (name, _), place in self.places.items():
            rows[names.index(name), place] = 1.0
        return rows
