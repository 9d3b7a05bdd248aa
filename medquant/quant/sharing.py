"""Which tensors must share a step: those that meet in a concatenation, followed back through operations that only move integers."""

from __future__ import annotations

from dataclasses import dataclass

from medquant.quant.graph import Add, BatchNorm, Concat, Convolution, FloatOperation, Graph, Linear, Operation, Relu
from medquant.quant.plan import writes_new_values


@dataclass(frozen=True)
class Sharing:
    """The quantizer groups of a graph.

    Args:
        sources: for each tensor, the sites whose values it holds (itself, for a site).
        group: for each site, the name of its group (the first site in it).
        signed: groups that hold negative values.
    """

    sources: dict[str, tuple[str, ...]]
    group: dict[str, str]
    signed: frozenset[str]

    def group_of(self, tensor: str) -> str:
        """The group whose step and zero point a tensor is read with."""
        return self.group[self.sources[tensor][0]]


def find_sharing(graph: Graph) -> Sharing:
    """Group the sites of ``graph`` so that every concatenation joins tensors of one step and one zero point."""
    sources: dict[str, tuple[str, ...]] = {}
    parent: dict[str, str] = {}
    non_negative: dict[str, bool] = {}

    def root(site: str) -> str:
        while parent[site] != site:
            site = parent[site]
        return site

    for operation in graph:
        non_negative[operation.name] = _is_non_negative(operation, non_negative)
        if writes_new_values(operation):
            sources[operation.name] = (operation.name,)
            parent[operation.name] = operation.name
            continue
        held = tuple(dict.fromkeys(site for source in operation.inputs for site in sources[source]))
        sources[operation.name] = held
        if isinstance(operation, Concat):
            for site in held[1:]:
                parent[root(site)] = root(held[0])
    order = list(parent)
    first: dict[str, str] = {}
    for site in order:
        first.setdefault(root(site), site)
    group = {site: first[root(site)] for site in order}
    signed = frozenset(group[site] for site in order if not non_negative[site])
    return Sharing(sources, group, signed)


def _is_non_negative(operation: Operation, known: dict[str, bool]) -> bool:
    if isinstance(operation, Relu) or (isinstance(operation, Convolution | Add | BatchNorm) and operation.relu):
        return True
    if isinstance(operation, Convolution | BatchNorm | Linear | FloatOperation) or not operation.inputs:
        return False
    # Everything else moves, averages or adds what it reads.
    return all(known[source] for source in operation.inputs)
