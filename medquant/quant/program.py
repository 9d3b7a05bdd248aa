"""The integer program: what a trained quantized network *is*, as a short list of typed nodes over numpy integers.

Engines run it, the packed file stores it, the ledger weighs it. No torch, no floats: values are integers, scales exponents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry, UpsampleMode

IntArray = NDArray[np.int64]
WeightArray = NDArray[np.signedinteger]


@dataclass(frozen=True)
class Node:
    """One step: a unique name, the tensors it reads, and the format of the tensor it writes (None: 32-bit accumulators)."""

    name: str
    inputs: tuple[str, ...]
    output: TensorFormat | None


@dataclass(frozen=True)
class ImageNode(Node):
    """The quantized image: the caller quantizes ``clamp(round(x * 2**exponent) + zero_point)``, half to even, and hands in integers."""

    channels: int


@dataclass(frozen=True)
class ConvolutionNode(Node):
    """``acc = sum(q_w * (q_a - z)) + q_b``, then requantization by ``2**-shift[c]``, or the accumulators themselves.

    Args:
        weight: integers, (out, in/groups, *K), or (in, out/groups, *K) where transposed; a byte each, as a network has many: take
            :attr:`weight_magnitude` for absolute values, which a byte cannot hold all of.
        bias: integers on the accumulator's grid, (out,).
        weight_exponents: one for each output channel, (out,).
        weight_bits: stored width.
        geometry: strides, padding and the like; padding is real zero.
        relu: whether values below real zero are clamped to it.
    """

    weight: WeightArray
    bias: IntArray
    weight_exponents: IntArray
    weight_bits: int
    geometry: ConvGeometry
    relu: bool

    @property
    def weight_magnitude(self) -> NDArray[np.integer]:
        """``|weight|``; of bytes as unsigned bytes, which hold that of the lowest too. Sums want a type of their own."""
        magnitude: NDArray[np.integer] = np.abs(self.weight)
        return magnitude.view(np.uint8) if magnitude.dtype == np.int8 else magnitude


@dataclass(frozen=True)
class MaxPoolNode(Node):
    """Maximum of integers over windows."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class AvgPoolNode(Node):
    """Sum over windows of ``2**n`` voxels, then requantization with the exponent raised by n."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class UpsampleNode(Node):
    """Nearest: copies. Linear by 2: weights 1 and 3 along each axis, over 4**axes, then requantization."""

    factor: int
    mode: UpsampleMode
    spatial_axes: int


@dataclass(frozen=True)
class ReluNode(Node):
    """``max(q, zero_point)``."""


@dataclass(frozen=True)
class ConcatNode(Node):
    """Join along the channel axis; all inputs share exponent and zero point."""


@dataclass(frozen=True)
class AddNode(Node):
    """Sum on the finer of the two grids, then requantization."""

    relu: bool


@dataclass(frozen=True)
class IntegerProgram:
    """Nodes in the order they run; the last is the output.

    Args:
        nodes: first the image, last the output.
        output_exponents: for each output channel, the exponent of the output integers: real value ``q * 2**-e`` (zero
            point of the output format taken off first, where the output is not accumulators).
    """

    nodes: tuple[Node, ...]
    output_exponents: tuple[int, ...]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def image(self) -> ImageNode:
        """The node that holds the image's format."""
        node = self.nodes[0]
        if not isinstance(node, ImageNode):
            raise TypeError("a program's first node is its image")
        return node

    @property
    def convolutions(self) -> list[ConvolutionNode]:
        """The nodes that carry parameters."""
        return [node for node in self.nodes if isinstance(node, ConvolutionNode)]

    @property
    def dimensions(self) -> int:
        """2 for images (N, C, I, J), 3 for volumes (N, C, I, J, K)."""
        return self.convolutions[0].weight.ndim - 2

    def format_of(self, name: str) -> TensorFormat:
        """The format a node's input is read with."""
        found = self[name].output
        if found is None:
            raise TypeError(f"{name} writes accumulators, which nothing may read")
        return found


def accumulator_bound(node: ConvolutionNode, read: TensorFormat) -> int:
    """``max_c (sum|q_w[c]| * largest |q_a - z| + |q_b[c]|)``: no accumulator of the layer is larger, whatever the image.

    For a transposed convolution the sum runs over all taps of an output channel, which bounds each output voxel from above.
    """
    magnitude = node.weight_magnitude
    if node.geometry.transposed:
        groups, per_group = node.geometry.groups, node.weight.shape[1]
        sums = magnitude.reshape(groups, node.weight.shape[0] // groups, per_group, -1).sum(axis=(1, 3), dtype=np.int64)
        grouped = sums.reshape(-1)
    else:
        grouped = magnitude.reshape(magnitude.shape[0], -1).sum(axis=1, dtype=np.int64)
    return int((grouped * read.largest_magnitude + np.abs(node.bias)).max())


def last_readers(program: IntegerProgram) -> dict[str, str]:
    """For each tensor, the last node that reads it; the output is read by nobody and kept."""
    last: dict[str, str] = {}
    for node in program:
        for source in node.inputs:
            last[source] = node.name
    return last
