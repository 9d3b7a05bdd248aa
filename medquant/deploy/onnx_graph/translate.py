"""An integer program as ONNX operators on uint8 levels, node by node.

Between operators a tensor holds the program's own integers, ``q`` with its zero point, as uint8. Where real arithmetic is
needed they are read with scale 1, so that every float is a whole number or one over a power of two, and float32 is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medquant.deploy.channels import channels_of
from medquant.deploy.engines.exactness import shift_of
from medquant.deploy.onnx_graph.convolutions import ConvolutionWriter, Source
from medquant.deploy.onnx_graph.requantize import Levels, Requantizer
from medquant.deploy.onnx_graph.writer import GraphWriter
from medquant.errors import EngineMismatchError
from medquant.quant.formats import FLOAT32_EXACT_LIMIT, TensorFormat, float32_adds_exactly
from medquant.quant.graph import ConvGeometry
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

_LARGEST_GAP = 40
_LARGEST_WEIGHT_GAP = 6


class Translator:
    """Writes the operators of one program.

    Args:
        program: the network.
        writer: the graph.
        portable: exact in OpenVINO too, not in ONNX Runtime alone.
        packed: store weights at their true width, as far as ONNX has it.
    """

    def __init__(self, program: IntegerProgram, writer: GraphWriter, portable: bool, packed: bool) -> None:
        self.program = program
        self.writer = writer
        self.requantize = Requantizer(writer, portable)
        self.convolve = ConvolutionWriter(writer, self.requantize, packed)
        self._axes = spatial_axes(program)
        self._channels = channels_of(program)
        self._raised = _raised_tensors(program) if portable else frozenset()

    def translate(self, image: str) -> str:
        """Write the whole program behind the uint8 tensor ``image``; the name of its output integers, int32.

        Raises:
            EngineMismatchError: a node has no exact form; the message names it.
        """
        tensors: dict[str, str] = {}
        for node in self.program:
            tensors[node.name] = image if isinstance(node, ImageNode) else self._write(node, [tensors[name] for name in node.inputs])
        last = self.program.nodes[-1]
        if last.output is None:
            return tensors[last.name]
        integers = self.writer.cast(tensors[last.name], np.int32, f"{last.name}_integers")
        if last.name not in self._raised:
            return integers
        return self.writer.op("Sub", [integers, self.writer.scalar(1, np.int32, "raised_by")], f"{last.name}_lowered")

    def _write(self, node: Node, inputs: list[str]) -> str:
        write = self.writer
        if isinstance(node, ConvolutionNode):
            shift = None if node.output is None else shift_of(node, self.program)
            read = self.program.format_of(node.inputs[0])
            source = Source(inputs[0], self._levels(node.inputs[0]).zero_point, read)
            return self.convolve(node, source, None if node.output is None else self._levels(node.name), shift)
        if isinstance(node, MaxPoolNode):
            # On levels: the least of them, 0, is what runtimes pad with, and it never wins.
            return write.op("MaxPool", inputs, node.name, kernel_shape=node.kernel, strides=node.stride, pads=node.padding * 2)
        if isinstance(node, ConcatNode):
            return write.op("Concat", inputs, node.name, axis=1)
        if isinstance(node, ReluNode):
            zero_point = self._levels(node.name).zero_point
            return inputs[0] if zero_point == 0 else write.op("Max", [inputs[0], write.scalar(zero_point, np.uint8, "level")], node.name)
        if isinstance(node, AddNode):
            return self._add(node, inputs)
        if isinstance(node, AvgPoolNode):
            return self._average(node, inputs[0])
        if isinstance(node, UpsampleNode):
            return self._nearest(node, inputs[0]) if node.mode == "nearest" else self._linear(node, inputs[0])
        raise EngineMismatchError(f"{node.name} is a {type(node).__name__}, which has no ONNX form here; use engine reference")

    def _levels(self, name: str) -> Levels:
        written = self.program.format_of(name)
        raised = int(name in self._raised)
        return Levels(raised, written.highest + raised, written.zero_point + raised)

    def _centred(self, levels: str, source: str, dtype: type[np.floating] = np.float32) -> str:
        """``q - zero_point``. A conversion, not DequantizeLinear: runtimes would join that to a quantization behind it."""
        value = self.writer.cast(levels, dtype, f"{source}_number")
        zero_point = self._levels(source).zero_point
        if zero_point == 0:
            return value
        return self.writer.op("Sub", [value, self.writer.scalar(zero_point, dtype, "offset")], f"{source}_centred")

    def _add(self, node: AddNode, inputs: Sequence[str]) -> str:
        exponents = [self.program.format_of(name).exponent for name in node.inputs]
        gaps = [max(exponents) - exponent for exponent in exponents]
        if max(gaps) > (_LARGEST_WEIGHT_GAP if self.requantize.portable else _LARGEST_GAP):
            steps = " and ".join(f"2**-{exponent}" for exponent in exponents)
            raise EngineMismatchError(f"{node.name} joins steps of {steps}, too far apart for an exact sum in ONNX; use engine reference")
        if self.requantize.portable:
            return self._add_by_convolution(node, inputs, gaps)
        narrow = float32_adds_exactly(*exponents)
        dtype: type[np.floating] = np.float32 if narrow else np.float64
        terms = []
        for levels, source, gap in zip(inputs, node.inputs, gaps, strict=True):
            term = self._centred(levels, source, dtype)
            if gap:
                term = self.writer.op("Mul", [term, self.writer.scalar(2.0**gap, dtype, "factor")], f"{source}_on_grid")
            terms.append(term)
        sums, shift, written = self.writer.op("Add", terms, f"{node.name}_sums"), shift_of(node, self.program), self._levels(node.name)
        if narrow:
            return self.requantize(sums, shift, written, node.relu, node.name)
        return self.requantize.spelled_out(sums, shift, written, node.relu, node.name)

    def _add_by_convolution(self, node: AddNode, inputs: Sequence[str], gaps: Sequence[int]) -> str:
        """The sum as a 1×1 convolution of both tensors side by side, weights ``2**gap``: byte products, whose sums OpenVINO keeps.

        It joins an addition of floats to the convolution that wrote one of them, before that is rounded, and where it takes
        bfloat16 by itself it rounds the sums of integers too.
        """
        channels, axes = self._channels[node.name], self._axes
        factors = [2**gap for gap in gaps]
        weight = np.concatenate([np.eye(channels, dtype=np.int64) * factor for factor in factors], axis=1)
        offset = sum(factor * self._levels(name).zero_point for factor, name in zip(factors, node.inputs, strict=True))
        shift = np.broadcast_to(shift_of(node, self.program), (channels,))
        geometry = ConvGeometry((1,) * axes, (0,) * axes, (1,) * axes)
        sum_node = ConvolutionNode(
            name=node.name,
            inputs=node.inputs,
            output=node.output,
            weight=weight.reshape(channels, -1, *(1,) * axes),
            bias=np.full(channels, -offset),
            weight_exponents=shift,
            weight_bits=8,
            geometry=geometry,
            relu=node.relu,
        )
        both = Source(self.writer.op("Concat", inputs, f"{node.name}_both", axis=1), 0, TensorFormat(8, 0, 0))
        return self.convolve(sum_node, both, self._levels(node.name), shift)

    def _average(self, node: AvgPoolNode, levels: str) -> str:
        voxels, read = int(np.prod(node.kernel)), self.program.format_of(node.inputs[0])
        if voxels * read.largest_magnitude >= FLOAT32_EXACT_LIMIT:
            raise EngineMismatchError(f"{node.name} sums {voxels} voxels in float32, beyond 2**24; use engine reference")
        mean = self.writer.op(
            "AveragePool", [self._centred(levels, node.inputs[0])], f"{node.name}_mean", kernel_shape=node.kernel, strides=node.stride
        )
        # The mean is the sum over 2**n already; exact, since n is small.
        return self.requantize(mean, shift_of(node, self.program) - (voxels.bit_length() - 1), self._levels(node.name), False, node.name)

    def _nearest(self, node: UpsampleNode, levels: str) -> str:
        # Half-pixel centres keep every coordinate away from a tie, whatever the factor; asymmetric ones end on whole numbers.
        return self._resize(node, levels, node.name, mode="nearest", nearest_mode="round_prefer_floor")

    def _linear(self, node: UpsampleNode, levels: str) -> str:
        # Weights of a quarter and three quarters along each axis: exact multiples of 1/64 below 2**8.
        resized = self._resize(node, self._centred(levels, node.inputs[0]), f"{node.name}_mean", mode="linear")
        shift = shift_of(node, self.program) - 2 * node.spatial_axes
        return self.requantize(resized, shift, self._levels(node.name), False, node.name)

    def _resize(self, node: UpsampleNode, source: str, stem: str, **modes: str) -> str:
        scales = self.writer.constant(np.array([1, 1] + [node.factor] * node.spatial_axes, np.float32), "scales")
        return self.writer.op("Resize", [source, "", scales], stem, coordinate_transformation_mode="half_pixel", **modes)


def _raised_tensors(program: IntegerProgram) -> frozenset[str]:
    """Tensors of an odd zero point that hold every integer one higher, so that it is even and one operator quantizes exactly.

    All that share their integers or none: not where the image is among them, or the highest would pass 255.
    """
    together: dict[str, set[str]] = {}
    for node in program:
        group = {node.name}
        if isinstance(node, MaxPoolNode | ConcatNode | ReluNode) or (isinstance(node, UpsampleNode) and node.mode == "nearest"):
            group = group.union(*(together[source] for source in node.inputs))
        together.update(dict.fromkeys(group, group))
    formats = {node.name: node.output for node in program if node.output is not None}
    kept = {name for name, written in formats.items() if written.zero_point % 2 == 0 or written.highest == np.iinfo(np.uint8).max}
    return frozenset(name for name in formats if not together[name] & (kept | {program.image.name}))


def spatial_axes(program: IntegerProgram) -> int:
    """2 or 3; what is without any layer that tells is taken for flat."""
    for node in program:
        if isinstance(node, ConvolutionNode):
            return node.geometry.spatial_axes
        if isinstance(node, MaxPoolNode | AvgPoolNode):
            return len(node.kernel)
        if isinstance(node, UpsampleNode):
            return node.spatial_axes
    return 2
