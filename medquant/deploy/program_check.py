"""Whether an integer program is whole: every node fits what it reads, so that an engine may run it without looking."""

from __future__ import annotations

import contextlib

import numpy as np

from medquant.errors import ConfigError
from medquant.quant.program import (
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntegerProgram,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
    accumulator_bound,
)
from medquant.quant.shapes import infer_shapes

_ACCUMULATOR_LIMIT = 2**31
_NOMINAL_LENGTH = 1024
_TRIED_SIDES = tuple(2**power for power in range(11))


def check_program(program: IntegerProgram, size_multiple: int) -> int:
    """Refuse a program that no engine could run.

    Args:
        program: what was lowered, or read from a file.
        size_multiple: every spatial axis of an image is a multiple of this.

    Returns:
        The number of output channels.

    Raises:
        ConfigError: names occur twice, a node reads what does not exist or does not fit, accumulators could leave 32 bits,
            or the output's exponents are not those of the last node.
    """
    _check_order(program)
    # The axes are those of the first layer that has some; a size far above any kernel, since a shape costs nothing.
    axes = next((node.geometry.spatial_axes for node in program.convolutions), 2)
    length = -(-_NOMINAL_LENGTH // size_multiple) * size_multiple
    shapes = infer_shapes(program, (1, program.image.channels, *[length] * axes))
    for node in program:
        if isinstance(node, ConvolutionNode):
            _check_convolution(node, program)
        elif _moves_integers(node):
            _check_same_grid(node, program)
    expected = _output_exponents(program)
    if program.output_exponents != expected:
        raise ConfigError(f"the output's exponents are {program.output_exponents}, expected {expected} from the last layer")
    return shapes[program.nodes[-1].name][1]


def smallest_image(program: IntegerProgram) -> tuple[int, ...] | None:
    """Shape (1, C, *S) of the smallest cube or square the program takes, sides being powers of two; None where it takes none."""
    axes = program.dimensions if program.convolutions else 0
    for side in _TRIED_SIDES if axes else ():
        shape = (1, program.image.channels, *[side] * axes)
        # A network that halves and doubles joins tensors of different sizes unless the sides are multiples of its stride.
        with contextlib.suppress(ConfigError):
            infer_shapes(program, shape)
            return shape
    return None


def _check_order(program: IntegerProgram) -> None:
    nodes = program.nodes
    if not nodes or not isinstance(nodes[0], ImageNode) or any(isinstance(node, ImageNode) for node in nodes[1:]):
        raise ConfigError("a program starts with its image and has only one")
    written: set[str] = set()
    for node in nodes:
        if node.name in written:
            raise ConfigError(f"two nodes are called {node.name!r}")
        for source in node.inputs:
            if source not in written:
                raise ConfigError(f"{node.name} reads {source!r}, which nothing before it writes")
        written.add(node.name)
        if node.output is None and not (node is nodes[-1] and isinstance(node, ConvolutionNode)):
            raise ConfigError(f"{node.name} writes accumulators, which only a convolution at the end may do")


def _check_convolution(node: ConvolutionNode, program: IntegerProgram) -> None:
    channels = node.weight.shape[1] * node.geometry.groups if node.geometry.transposed else node.weight.shape[0]
    if node.bias.shape != (channels,) or node.weight_exponents.shape != (channels,):
        raise ConfigError(f"{node.name}: {node.bias.shape} biases and {node.weight_exponents.shape} exponents for {channels} channels")
    bound = accumulator_bound(node, program.format_of(node.inputs[0]))
    if bound >= _ACCUMULATOR_LIMIT:
        raise ConfigError(f"{node.name}: accumulators up to {bound} do not fit 32 bits")


def _moves_integers(node: Node) -> bool:
    return isinstance(node, MaxPoolNode | ConcatNode | ReluNode) or (isinstance(node, UpsampleNode) and node.mode == "nearest")


def _check_same_grid(node: Node, program: IntegerProgram) -> None:
    written = program.format_of(node.name)
    for source in node.inputs:
        read = program.format_of(source)
        if (read.zero_point, read.exponent) != (written.zero_point, written.exponent) or read.bits > written.bits:
            raise ConfigError(f"{node.name} moves integers of {source} ({read}) into another format ({written})")


def _output_exponents(program: IntegerProgram) -> tuple[int, ...]:
    last = program.nodes[-1]
    if isinstance(last, ConvolutionNode) and last.output is None:
        read = program.format_of(last.inputs[0])
        return tuple(int(exponent) + read.exponent for exponent in np.asarray(last.weight_exponents))
    return (program.format_of(last.name).exponent,)
