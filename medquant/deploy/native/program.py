"""The integer program as the native library reads it: one block of bytes, and the weights of each convolution as an array of bytes.

The block is little endian; ``read_program`` in native/src/program.cpp reads it and checks every field again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medquant.errors import EngineMismatchError, shortened
from medquant.quant.program import (
    AddNode,
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntegerProgram,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
)

_MAGIC = b"MQNP"
_VERSION = 1
_LONGEST_NAME = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_KINDS: tuple[type[Node], ...] = (ImageNode, ConvolutionNode, MaxPoolNode, AvgPoolNode, UpsampleNode, ReluNode, ConcatNode, AddNode)
_UPSAMPLING = ("nearest", "linear")
_INT8, _INT32 = np.iinfo(np.int8), np.iinfo(np.int32)


def encode_program(program: IntegerProgram) -> tuple[bytes, list[NDArray[np.int8]]]:
    """A program as the library takes it.

    Returns:
        The block of bytes, and the weights of each convolution in the program's order, contiguous: the program's own arrays
        where they are bytes already.

    Raises:
        EngineMismatchError: a node of a type the library does not know, or a value that has no place in the block.
    """
    axes = _spatial_axes(program)
    places: dict[str, int] = {}
    weights: list[NDArray[np.int8]] = []
    parts = [_MAGIC, struct.pack("<III", _VERSION, axes, len(program.nodes))]
    for place, node in enumerate(program):
        try:
            parts += [_head(node, places), _fields(node, axes, len(weights))]
        except struct.error as error:
            raise EngineMismatchError(f"{shortened(node.name)}: a value has no place in 32 bits ({error}); use engine reference") from error
        if isinstance(node, ConvolutionNode):
            weights.append(_as_bytes(node))
        if node.name in places:
            raise EngineMismatchError(f"two nodes are called {shortened(node.name)!r}; expected names that differ")
        places[node.name] = place
    return b"".join(parts), weights


def _spatial_axes(program: IntegerProgram) -> int:
    """Those of the first node that has some; a program without any is taken to be one for images."""
    for node in program:
        if isinstance(node, ConvolutionNode):
            return node.geometry.spatial_axes
        if isinstance(node, MaxPoolNode | AvgPoolNode):
            return len(node.kernel)
        if isinstance(node, UpsampleNode):
            return node.spatial_axes
    return 2


def _head(node: Node, places: Mapping[str, int]) -> bytes:
    if type(node) not in _KINDS:
        raise EngineMismatchError(
            f"engine native does not know the node {type(node).__name__} ({shortened(node.name)}); use engine torch or reference"
        )
    unknown = [source for source in node.inputs if source not in places]
    if unknown:
        raise EngineMismatchError(f"{shortened(node.name)} reads {shortened(unknown[0])!r}, which nothing before it writes")
    name = _plain_name(node.name)
    written = node.output
    accumulates_and_format = (1, 0, 0, 0) if written is None else (0, written.bits, written.zero_point, written.exponent)
    inputs = [places[source] for source in node.inputs]
    return b"".join(
        (
            struct.pack("<II", _KINDS.index(type(node)), len(name)),
            name,
            struct.pack(f"<I{len(inputs)}I", len(inputs), *inputs),
            struct.pack("<4i", *accumulates_and_format),
        )
    )


def _plain_name(name: str) -> bytes:
    """A name for messages: what has no bytes or would break a line is a question mark, and one that is too long ends early."""
    plain = _CONTROL.sub("?", name).encode("utf-8", "replace") or b"?"
    return plain[:_LONGEST_NAME].decode("utf-8", "ignore").encode("utf-8")


def _fields(node: Node, axes: int, weight_index: int) -> bytes:
    """What a node has beyond its name, inputs and format."""
    if isinstance(node, ImageNode):
        return struct.pack("<i", node.channels)
    if isinstance(node, ConvolutionNode):
        return _convolution(node, axes, weight_index)
    if isinstance(node, MaxPoolNode):
        return _geometry(node, axes, node.kernel, node.stride, node.padding)
    if isinstance(node, AvgPoolNode):
        return _geometry(node, axes, node.kernel, node.stride)
    if isinstance(node, UpsampleNode):
        if node.spatial_axes != axes:
            raise EngineMismatchError(f"{shortened(node.name)} works on {node.spatial_axes} spatial axes in a program of {axes}")
        return struct.pack("<2i", node.factor, _UPSAMPLING.index(node.mode))
    if isinstance(node, AddNode):
        return struct.pack("<i", node.relu)
    return b""


def _convolution(node: ConvolutionNode, axes: int, weight_index: int) -> bytes:
    geometry, shape = node.geometry, node.weight.shape
    if len(shape) != axes + 2:
        raise EngineMismatchError(f"{shortened(node.name)}: a weight of shape {shape} in a program of {axes} spatial axes")
    outputs, inputs = (shape[1] * geometry.groups, shape[0]) if geometry.transposed else (shape[0], shape[1] * geometry.groups)
    if node.bias.shape != (outputs,) or node.weight_exponents.shape != (outputs,):
        raise EngineMismatchError(
            f"{shortened(node.name)}: {node.bias.shape} biases and {node.weight_exponents.shape} exponents for {outputs} channels"
        )
    extra = geometry.output_padding or (0,) * axes
    return b"".join(
        (
            struct.pack("<4i", node.weight_bits, node.relu, geometry.transposed, geometry.groups),
            _geometry(node, axes, shape[2:], geometry.stride, geometry.padding, geometry.dilation, extra),
            struct.pack("<2iI", outputs, inputs, weight_index),
            _words(node, "bias", node.bias),
            _words(node, "weight exponent", node.weight_exponents),
        )
    )


def _geometry(node: Node, axes: int, *each: Sequence[int]) -> bytes:
    wrong = [one for one in each if len(one) != axes]
    if wrong:
        raise EngineMismatchError(f"{shortened(node.name)} has {len(wrong[0])} entries ({wrong[0]}) in a program of {axes} spatial axes")
    return b"".join(struct.pack(f"<{axes}i", *one) for one in each)


def _words(node: Node, what: str, values: NDArray[np.signedinteger]) -> bytes:
    _check_within(node, what, values, _INT32.min, _INT32.max)
    return values.astype("<i4").tobytes()


def _as_bytes(node: ConvolutionNode) -> NDArray[np.int8]:
    weight: NDArray[np.signedinteger] = node.weight
    if weight.dtype != np.int8:
        _check_within(node, "weight", weight, _INT8.min, _INT8.max)
    return np.ascontiguousarray(weight, dtype=np.int8)


def _check_within(node: Node, what: str, values: NDArray[np.signedinteger], lowest: int, highest: int) -> None:
    if values.size and not lowest <= int(values.min()) <= int(values.max()) <= highest:
        raise EngineMismatchError(
            f"{shortened(node.name)}: {what} from {values.min()} to {values.max()}, expected {lowest} to {highest}; use engine reference"
        )
