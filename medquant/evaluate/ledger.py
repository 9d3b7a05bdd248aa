"""The memory ledger: what a network weighs, counted to the last exponent, beside the figure papers print.

Definitions are those of the documentation's table "Memory, defined". A network can be weighed as a trained integer program or,
before any training, from its graph and its plan; both give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from medquant.deploy.bitpacking import packed_size_bytes
from medquant.quant.formats import FLOAT_BITS
from medquant.quant.graph import BatchNorm, Convolution, FloatOperation, Graph, Linear, Operation
from medquant.quant.plan import QuantPlan
from medquant.quant.program import ConvolutionNode, IntegerProgram, Node
from medquant.quant.shapes import Shape, infer_shapes
from medquant.quant.sharing import Sharing, find_sharing

__all__ = ["Ledger", "LedgerRow", "infer_shapes", "tensors_alive", "weigh_plan", "weigh_program"]

ACCUMULATOR_BITS = 32
_BIAS_BITS = 32
_EXPONENT_BITS = 8
# Width, zero point and exponent, a byte each.
_FORMAT_BYTES = 3


@dataclass(frozen=True)
class LedgerRow:
    """One layer. Its four parameter figures, summed over all rows, are the network's share of the ledger's ``parameter_bytes``.

    Args:
        name: layer name.
        weight_bits: stored width of the weights, 32 for float, None where there are none.
        activation_bits: stored width of what it writes, 32 for float, None for 32-bit accumulators.
        weight_bytes: weights at their stored width.
        bias_bytes: biases, 32 bits each.
        exponent_bytes: one byte for each output channel of a quantized convolution.
        format_bytes: 3 where it writes a quantized tensor, otherwise 0.
        output_shape: shape of what it writes, (N, C, *S).
        output_bytes: size of what it writes at its stored width.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    weight_bytes: int
    bias_bytes: int
    exponent_bytes: int
    format_bytes: int
    output_shape: Shape
    output_bytes: int

    @property
    def parameter_bytes(self) -> int:
        """All that is stored for the layer."""
        return self.weight_bytes + self.bias_bytes + self.exponent_bytes + self.format_bytes


@dataclass(frozen=True)
class Ledger:
    """The memory of a network, in bytes.

    Args:
        parameter_bytes: weights, biases, exponents and formats as stored, leftovers in float included, those of the coarse network
            that finds the region as well.
        paper_bytes: all parameters of the float network at the run's weight bits, as papers count.
        float_bytes: all parameters of the float network at 32 bits.
        activation_peak_bytes: largest sum of tensors alive at once, at stored width.
        float_activation_peak_bytes: the same with every tensor at 32 bits.
        input_shape: the image both peaks are for, (N, C, *S).
        rows: the layers, in the order they run.
        coarse_parameter_bytes: the coarse network's share of ``parameter_bytes``; 0 where there is none.
        model_file_bytes: size of the packed file, where there is one.
        process_peak_bytes: measured peak of a process above idle, where it was measured.
    """

    parameter_bytes: int
    paper_bytes: int
    float_bytes: int
    activation_peak_bytes: int
    float_activation_peak_bytes: int
    input_shape: Shape
    rows: tuple[LedgerRow, ...]
    coarse_parameter_bytes: int = 0
    model_file_bytes: int | None = None
    process_peak_bytes: int | None = None

    def to_json(self) -> dict[str, object]:
        """The ``memory`` part of ``medquant eval --json``."""
        return {
            "parameter_bytes": self.parameter_bytes,
            "coarse_parameter_bytes": self.coarse_parameter_bytes,
            "paper_bytes": self.paper_bytes,
            "float_bytes": self.float_bytes,
            "model_file_bytes": self.model_file_bytes,
            "activation_peak_bytes": self.activation_peak_bytes,
            "float_activation_peak_bytes": self.float_activation_peak_bytes,
            "process_peak_bytes": self.process_peak_bytes,
            "input_shape": list(self.input_shape),
            "layers": [{**vars(row), "output_shape": list(row.output_shape)} for row in self.rows],
        }


class _Runs(Protocol):
    """Whatever runs: it has a name, and names what it reads."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class _Step:
    """What weighing needs to know of one operation; ``activation_bits`` is None for accumulators."""

    name: str
    inputs: tuple[str, ...]
    activation_bits: int | None
    weight_bits: int | None = None
    weights: int = 0
    channels: int = 0


def weigh_program(
    program: IntegerProgram, float_parameters: int, wbits: int, input_shape: Sequence[int], coarse: IntegerProgram | None = None
) -> Ledger:
    """Weigh a trained program.

    Args:
        program: the network.
        float_parameters: parameters of the float network it came from, batch norm included.
        wbits: the run's nominal weight bits, for the paper's figure.
        input_shape: (N, C, *S) for which activations are counted.
        coarse: the network that finds the region, where the model file holds one.

    Raises:
        ConfigError: the program does not take such an image.
    """
    ledger = _weigh([_program_step(node) for node in program], infer_shapes(program, input_shape), float_parameters, wbits)
    if coarse is None:
        return ledger
    extra = sum(_row(_program_step(node), ()).parameter_bytes for node in coarse)
    return replace(ledger, parameter_bytes=ledger.parameter_bytes + extra, coarse_parameter_bytes=extra)


def weigh_plan(graph: Graph, plan: QuantPlan, float_parameters: int, wbits: int, input_shape: Sequence[int]) -> Ledger:
    """Weigh a network that need not be trained, float layers included; arguments as for :func:`weigh_program`.

    Args:
        graph: simplified network (:func:`medquant.quant.fold.simplify`).
        plan: its resolved bits.
        float_parameters: parameters of the float network, batch norm included.
        wbits: the run's nominal weight bits.
        input_shape: (N, C, *S).

    Raises:
        ConfigError: the graph is not simplified, or does not take such an image.
    """
    sharing = find_sharing(graph)
    steps = [_graph_step(operation, plan, sharing) for operation in graph]
    return _weigh(steps, infer_shapes(graph, input_shape), float_parameters, wbits)


def _program_step(node: Node) -> _Step:
    bits = None if node.output is None else node.output.bits
    if isinstance(node, ConvolutionNode):
        return _Step(node.name, node.inputs, bits, node.weight_bits, node.weight.size, node.bias.size)
    return _Step(node.name, node.inputs, bits)


def _graph_step(operation: Operation, plan: QuantPlan, sharing: Sharing) -> _Step:
    # A tensor that only holds moved integers is as wide as the widest it may hold.
    widths = [plan[site].activation_bits for site in sharing.sources[operation.name]]
    bits = None if None in widths else max(width for width in widths if width is not None)
    if isinstance(operation, BatchNorm):
        # Gain and offset; the running statistics can be worked into them.
        channels = int(operation.scale.numel())
        return _Step(operation.name, operation.inputs, bits, FLOAT_BITS, channels, channels)
    if isinstance(operation, FloatOperation):
        return _Step(operation.name, operation.inputs, bits, plan[operation.name].weight_bits, operation.parameters)
    if isinstance(operation, Convolution | Linear):
        weights = int(operation.weight.numel())
        return _Step(operation.name, operation.inputs, bits, plan[operation.name].weight_bits, weights, operation.out_channels)
    return _Step(operation.name, operation.inputs, bits)


def _weigh(steps: list[_Step], shapes: dict[str, Shape], float_parameters: int, wbits: int) -> Ledger:
    rows = tuple(_row(step, shapes[step.name]) for step in steps)
    floats = {name: packed_size_bytes(math.prod(shape), FLOAT_BITS) for name, shape in shapes.items()}
    return Ledger(
        parameter_bytes=sum(row.parameter_bytes for row in rows),
        paper_bytes=packed_size_bytes(float_parameters, wbits),
        float_bytes=packed_size_bytes(float_parameters, FLOAT_BITS),
        activation_peak_bytes=_peak(steps, {row.name: row.output_bytes for row in rows}),
        float_activation_peak_bytes=_peak(steps, floats),
        input_shape=shapes[steps[0].name],
        rows=rows,
    )


def _row(step: _Step, shape: Shape) -> LedgerRow:
    quantized_weights = step.weight_bits not in (None, FLOAT_BITS)
    return LedgerRow(
        name=step.name,
        weight_bits=step.weight_bits,
        activation_bits=step.activation_bits,
        weight_bytes=packed_size_bytes(step.weights, step.weight_bits or 0),
        bias_bytes=packed_size_bytes(step.channels, _BIAS_BITS),
        exponent_bytes=packed_size_bytes(step.channels, _EXPONENT_BITS) if quantized_weights else 0,
        format_bytes=_FORMAT_BYTES if step.activation_bits not in (None, FLOAT_BITS) else 0,
        output_shape=shape,
        output_bytes=packed_size_bytes(math.prod(shape), step.activation_bits or ACCUMULATOR_BITS),
    )


def _peak(steps: list[_Step], sizes: dict[str, int]) -> int:
    """Largest sum of tensors alive at once, as the engines run: while a step runs its inputs and its output are all there.

    A tensor is released after its last reader; a concatenation makes a copy, so its parts and the joined tensor count;
    what nobody reads stays to the end. Working memory inside one operation is not a tensor of the network and not counted.
    """
    return max((sum(sizes[name] for name in alive) for alive in tensors_alive(steps)), default=0)


def tensors_alive(steps: Iterable[_Runs]) -> Iterator[tuple[str, ...]]:
    """Names of the tensors there are while each step runs, step by step: what :func:`_peak` adds up.

    Args:
        steps: operations of a graph or nodes of a program, in the order they run.
    """
    steps = list(steps)
    last_reader = {source: step.name for step in steps for source in step.inputs}
    alive: dict[str, None] = {}
    for step in steps:
        alive[step.name] = None
        yield tuple(alive)
        for source in step.inputs:
            if last_reader[source] == step.name:
                alive.pop(source, None)
