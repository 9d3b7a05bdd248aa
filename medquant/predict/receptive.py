"""How far a network sees: the surroundings of a voxel that its class may depend on, found from the program alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from medquant.errors import ConfigError
from medquant.quant.program import AvgPoolNode, ConvolutionNode, IntegerProgram, MaxPoolNode, Node, UpsampleNode

Interval = tuple[int, int]
"""First and last index."""


@dataclass(frozen=True)
class Reach:
    """What a tile needs so that the network decides its middle as it would in the whole image.

    Args:
        margin: voxels around the middle, along each spatial axis: a multiple of ``step``, at least the receptive field.
        step: tiles begin and end at multiples of this, where the windows of pooling and strides begin too.
    """

    margin: tuple[int, ...]
    step: int


def find_reach(program: IntegerProgram, size_multiple: int) -> Reach:
    """Follow every path from the output back to the image.

    Args:
        program: the network.
        size_multiple: what image sides must be multiples of.

    Raises:
        ConfigError: the output is not as large as the image.
    """
    axes = program.dimensions
    steps = [_step(program, axis) for axis in range(axes)]
    step = math.lcm(size_multiple, *steps)
    return Reach(tuple(_margin(program, axis, step) for axis in range(axes)), step)


def _step(program: IntegerProgram, axis: int) -> int:
    """The largest distance, in image voxels, of neighbouring values of any tensor."""
    distance: dict[str, Fraction] = {}
    for node in program:
        before = max((distance[name] for name in node.inputs), default=Fraction(1))
        distance[node.name] = before * _stride(node, axis)
    if distance[program.nodes[-1].name] != 1:
        raise ConfigError("the network's output is not as large as its image")
    return math.lcm(*(math.ceil(value) for value in distance.values()))


def _stride(node: Node, axis: int) -> Fraction:
    if isinstance(node, ConvolutionNode):
        return Fraction(1, node.geometry.stride[axis]) if node.geometry.transposed else Fraction(node.geometry.stride[axis])
    if isinstance(node, MaxPoolNode | AvgPoolNode):
        return Fraction(node.stride[axis])
    return Fraction(1, node.factor) if isinstance(node, UpsampleNode) else Fraction(1)


def _margin(program: IntegerProgram, axis: int, step: int) -> int:
    # Far from 0, so that no index is negative: divisions round alike everywhere.
    first, last = 2**20 * step, 2**20 * step + step - 1
    needed: dict[str, Interval] = {program.nodes[-1].name: (first, last)}
    for node in reversed(program.nodes):
        if node.name not in needed or not node.inputs:
            continue
        low, high = _read(node, axis, needed[node.name])
        for name in node.inputs:
            known = needed.get(name, (low, high))
            needed[name] = min(low, known[0]), max(high, known[1])
    low, high = needed[program.image.name]
    return -(-max(first - low, high - last) // step) * step


def _read(node: Node, axis: int, written: Interval) -> Interval:
    """The stretch of its inputs a node reads to write a stretch of its output."""
    low, high = written
    if isinstance(node, ConvolutionNode):
        geometry = node.geometry
        stride, padding = geometry.stride[axis], geometry.padding[axis]
        span = geometry.dilation[axis] * (int(node.weight.shape[2 + axis]) - 1)
        if geometry.transposed:
            return -(-(low + padding - span) // stride), (high + padding) // stride
        return low * stride - padding, high * stride - padding + span
    if isinstance(node, MaxPoolNode):
        start = -node.padding[axis]
        return low * node.stride[axis] + start, high * node.stride[axis] + start + node.kernel[axis] - 1
    if isinstance(node, AvgPoolNode):
        return low * node.stride[axis], high * node.stride[axis] + node.kernel[axis] - 1
    if isinstance(node, UpsampleNode):
        beside = 1 if node.mode == "linear" else 0
        return low // node.factor - beside, high // node.factor + beside
    return low, high
