"""Which layer computes with how many bits: the resolved plan, printed by the command line and stored with a run.

A layer's weight bits are the width its weights are stored in; its activation bits are the width of what it *writes*, so that
every tensor in memory has one width and belongs to one row. The image is the row ``input``. The last layer writes 32-bit
accumulators, which are compared as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medquant.config.bits import BitRule, resolve
from medquant.errors import ConfigError, UsageError
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.graph import (
    TERNARY_TANH,
    Add,
    AvgPool,
    BatchNorm,
    Convolution,
    FloatOperation,
    Graph,
    Input,
    Linear,
    Operation,
    Upsample,
)

DefaultBits = Callable[[Operation, Graph, tuple[int, int]], tuple[int, int]]
"""From a layer, its graph and the bits (weight, activation) it would have, to those it gets where no rule speaks of it."""


@dataclass(frozen=True)
class LayerPlan:
    """The bits of one layer.

    Args:
        name: layer name, as bit rules match it.
        kind: what the layer is, for the table.
        weight_bits: 1 to 8, 32 for float, None where there are no weights.
        activation_bits: width of the tensor it writes: 1 to 8, 32 for float, None for the accumulators of the last layer.
        weights: number of weights.
        biases: number of bias values.
        note: why the bits differ from the run's own, or "".
    """

    name: str
    kind: str
    weight_bits: int | None
    activation_bits: int | None
    weights: int = 0
    biases: int = 0
    note: str = ""


@dataclass(frozen=True)
class QuantPlan:
    """The plan of a whole network, layers in the order they run."""

    layers: tuple[LayerPlan, ...]

    def __getitem__(self, name: str) -> LayerPlan:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def is_integer(self) -> bool:
        """Whether every layer is quantized, so that the network is an integer program."""
        return all(bits != FLOAT_BITS for layer in self.layers for bits in (layer.weight_bits, layer.activation_bits))

    @property
    def is_float(self) -> bool:
        """Whether no layer is quantized."""
        return all(bits in (None, FLOAT_BITS) for layer in self.layers for bits in (layer.weight_bits, layer.activation_bits))


def writes_new_values(operation: Operation) -> bool:
    """Whether an operation computes values that need a quantizer; pooling by maximum, copies and joins only move integers."""
    if isinstance(operation, Upsample):
        return operation.mode == "linear"
    return isinstance(operation, Input | Convolution | BatchNorm | Add | AvgPool | Linear | FloatOperation)


def resolve_plan(
    graph: Graph, wbits: int, abits: int, edge_bits: int, rules: Sequence[BitRule] = (), default_bits: DefaultBits | None = None
) -> QuantPlan:
    """Decide the bits of every layer.

    Args:
        graph: simplified network (see :func:`medquant.quant.fold.simplify`).
        wbits: weight bits of layers no rule speaks of, 1 to 8 or 32.
        abits: activation bits likewise.
        edge_bits: weight bits of the first and the last convolution and width of the image; not used where ``wbits`` is 32.
        rules: per-layer rules; the last match wins.
        default_bits: a method's own say in layers no rule speaks of (:meth:`medquant.quant.methods.base.Method.default_bits`).

    Raises:
        UsageError: a rule matches no layer, or gives weight bits where only layers without weights match.
        ConfigError: the network has no convolution.
    """
    sites, convolutions = [operation for operation in graph if writes_new_values(operation)], graph.convolutions
    if not convolutions:
        raise ConfigError("the network has no convolution; there is nothing to quantize")
    _refuse_float_sites(rules, sites)
    _refuse_idle_weights(rules, sites)
    _refuse_idle_activations(rules, sites, graph)
    edges = {convolutions[0].name: "first layer", convolutions[-1].name: "last layer"}
    standard: dict[str, tuple[int, int]] = {}
    for site in sites:
        weight = edge_bits if site.name in edges and wbits != FLOAT_BITS else wbits
        activation = edge_bits if isinstance(site, Input) and abits != FLOAT_BITS else abits
        if _feeds_batch_norm(site, graph):
            # Batch norm as a layer of its own reads real values; what it writes is quantized. So does a function before it.
            activation = FLOAT_BITS
        if isinstance(site, BatchNorm):
            weight = FLOAT_BITS
        if isinstance(site, FloatOperation | Linear):
            activation = FLOAT_BITS
        standard[site.name] = weight, activation
    defaults = {
        site.name: standard[site.name] if default_bits is None else default_bits(site, graph, standard[site.name]) for site in sites
    }
    resolved = resolve(rules, [site.name for site in sites], defaults)
    layers = []
    for site in sites:
        bits, chosen = resolved[site.name], defaults[site.name]
        if isinstance(site, FloatOperation | Linear):
            bits = (bits[0], FLOAT_BITS)
        note = _note(site, graph, edges, bits, chosen, (wbits, abits), standard[site.name])
        layers.append(_layer(site, bits, note, is_last=site.name == graph.output))
    return QuantPlan(tuple(layers))


def _refuse_float_sites(rules: Sequence[BitRule], sites: Sequence[Operation]) -> None:
    """Refuse rules that only speak of what has no integer form; a rule for many layers passes such by."""
    for rule in rules:
        matched = [site for site in sites if rule.matches(site.name)]
        floats = [site.name for site in matched if isinstance(site, FloatOperation | Linear)]
        without_weights = all(isinstance(site, FloatOperation) for site in matched)
        if matched and len(floats) == len(matched) and (without_weights or rule.weight_bits is None):
            raise UsageError(
                f"bit rule {rule.text!r} matches {', '.join(floats)} only, which writes real values and stays float; leave it out"
            )


def _refuse_idle_weights(rules: Sequence[BitRule], sites: Sequence[Operation]) -> None:
    for rule in rules:
        matched = [site for site in sites if rule.matches(site.name)]
        if rule.weight_bits is not None and matched and not any(isinstance(site, Convolution | Linear) for site in matched):
            names = ", ".join(site.name for site in matched)
            raise UsageError(f"bit rule {rule.text!r} gives weight bits to {names}, which has no weights; write '{rule.pattern}=/A'")


def _refuse_idle_activations(rules: Sequence[BitRule], sites: Sequence[Operation], graph: Graph) -> None:
    if not isinstance(graph[graph.output], Convolution):
        return
    for rule in rules:
        matched = [site.name for site in sites if rule.matches(site.name)]
        if rule.weight_bits is None and rule.activation_bits is not None and matched == [graph.output]:
            raise UsageError(
                f"bit rule {rule.text!r} gives activation bits to {graph.output}, the last layer, whose 32-bit accumulators are "
                f"compared as they are; write '{rule.pattern}=W/'"
            )


def _feeds_batch_norm(site: Operation, graph: Graph) -> bool:
    readers = graph.readers(site.name)
    return (
        isinstance(site, Convolution | Add)
        and bool(readers)
        and all(isinstance(reader, BatchNorm) or _is_function(reader) for reader in readers)
    )


def _is_function(operation: Operation) -> bool:
    # Quantizing what a bounded curve reads would be another network than the one that has it in a rectifier's place.
    return isinstance(operation, FloatOperation) and operation.target == TERNARY_TANH


def _note(
    site: Operation,
    graph: Graph,
    edges: dict[str, str],
    bits: tuple[int, int],
    default: tuple[int, int],
    uniform: tuple[int, int],
    standard: tuple[int, int],
) -> str:
    if bits != default:
        return "set by rule"
    if default != standard and site.name not in edges and not isinstance(site, Input):
        return "float in this method" if FLOAT_BITS in default else "this method's own width"
    if isinstance(site, BatchNorm):
        return "float: statistics of each batch in training"
    if _feeds_batch_norm(site, graph) and bits[1] == FLOAT_BITS:
        return "batch norm reads its real values"
    if site.name in edges and bits[0] != uniform[0]:
        return f"{edges[site.name]}: {bits[0]}-bit weights"
    if isinstance(site, Input) and bits[1] != uniform[1]:
        return f"image: {bits[1]} bits"
    if isinstance(site, Convolution) and _is_norm(site):
        return "batch norm that cannot be folded"
    return ""


def _layer(site: Operation, bits: tuple[int, int], note: str, is_last: bool) -> LayerPlan:
    weight_bits, activation_bits = bits
    if isinstance(site, FloatOperation):
        return LayerPlan(site.name, site.kind, FLOAT_BITS if site.parameters else None, FLOAT_BITS, site.parameters, note=site.reason)
    if isinstance(site, Linear):
        note = "float: reads and writes real values" + (f"; {note}" if note else "")
        return LayerPlan(site.name, "linear", weight_bits, FLOAT_BITS, site.weight.numel(), site.out_channels, note)
    # Accumulators are compared as they are, so the last convolution writes no quantized tensor.
    written = None if is_last and isinstance(site, Convolution) else activation_bits
    if isinstance(site, BatchNorm):
        return LayerPlan(site.name, _kind(site), FLOAT_BITS, written, site.scale.numel(), site.shift.numel(), note)
    if not isinstance(site, Convolution):
        return LayerPlan(site.name, _kind(site), None, written, note=note)
    return LayerPlan(site.name, _kind(site), weight_bits, written, site.weight.numel(), site.out_channels, note)


def _is_norm(site: Convolution) -> bool:
    return site.geometry.groups == site.out_channels and site.weight[0].numel() == 1 and site.out_channels > 1


def _kind(site: Operation) -> str:
    if isinstance(site, Convolution):
        size = "×".join(str(length) for length in site.weight.shape[2:])
        grouped = "depthwise " if site.geometry.groups == site.out_channels > 1 else ""
        return f"{grouped}{'transposed ' if site.geometry.transposed else ''}conv {size}"
    return {Input: "image", BatchNorm: "batch norm", Upsample: "up ×2 linear", Add: "add", AvgPool: "average pool"}[type(site)]
