"""An integer program as an OpenVINO model that the CPU plugin runs in 8-bit kernels, every value equal to the reference's.

Tensors hold ``q - zero_point`` as floats, one step is 1: exponents appear only as the powers of two that requantization multiplies
with, folded into the weights' scales. How a graph is written decides whether OpenVINO is exact and whether it is fast:

- A requantization is written ``Round(half to even) -> Clamp -> FakeQuantize`` over 256 levels. The first two decide every value, and
  they fuse into the kernel before; FakeQuantize moves nothing any more and says only that the tensor fits a byte. Left to
  round by itself it adds the zero point before it rounds, which turns ties around where that is odd, and next to additions
  it is not always done at all. Fewer than 256 levels would say what the clamp says, but run in float.
- The byte is ``q`` for every zero point, so that all tensors of one grid are written alike: OpenVINO joins tensors of unlike
  ranges wrongly, in silence.
- Weights are 8-bit (4-bit, widened first) constants with a scale for each channel, behind a Convert, never a FakeQuantize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.exactness import check_float32, shift_of
from medquant.deploy.openvino_import import import_openvino
from medquant.errors import EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import (
    AddNode,
    AvgPoolNode,
    ConcatNode,
    ConvolutionNode,
    ImageNode,
    IntArray,
    IntegerProgram,
    MaxPoolNode,
    Node,
    ReluNode,
    UpsampleNode,
)

if TYPE_CHECKING:
    from openvino import Output

_NAME = "openvino"
_INT4_BITS = 4
_BYTE = 255
# Of sums below 2**24 in magnitude nothing is left behind a shift of 26, and a left shift of 9 brings 1 beyond every format.
# Shifts outside give the same integers as these ends, but their powers of two may not be floats.
_LARGEST_SHIFT, _SMALLEST_SHIFT = 26, -9


_NODES = (ImageNode, ConvolutionNode, MaxPoolNode, AvgPoolNode, UpsampleNode, ReluNode, ConcatNode, AddNode)


def check_graph(program: IntegerProgram) -> None:
    """Refuse a program with a node that has no exact form in OpenVINO.

    Raises:
        EngineMismatchError: the message names the node.
    """
    check_float32(program, _NAME)
    for node in program:
        if type(node) not in _NODES:
            raise EngineMismatchError(f"engine {_NAME} does not know the node {type(node).__name__} ({node.name})")
        if isinstance(node, ConvolutionNode) and not node.geometry.transposed:
            axes = zip(node.weight.shape[2:], node.geometry.dilation, node.geometry.padding, strict=True)
            if not all(_meets_image(*axis) for axis in axes):
                raise EngineMismatchError(
                    f"engine {_NAME} crashes or is wrong where windows lie in the padding alone, as those of {node.name} can "
                    f"(kernel {node.weight.shape[2:]}, padding {node.geometry.padding}, dilation {node.geometry.dilation}); "
                    "use engine torch or reference"
                )


class OpenVinoGraph:
    """The tensors of a program as outputs of OpenVINO operations.

    Args:
        program: the network.
        image: the image's integers ``q``, any number type, (N, C, *S).
        narrow: whether weights of at most 4 bits are 4-bit constants, as a file wants them, or shared 8-bit ones.

    Raises:
        EngineMismatchError: see :func:`check_graph`.
    """

    def __init__(self, program: IntegerProgram, image: Output, narrow: bool = False) -> None:
        check_graph(program)
        self._narrow = narrow
        openvino = import_openvino()
        self._ops: Any = openvino.opset13
        self._int4: Any = openvino.Type.i4
        self._program = program
        self._image = image
        self._values: dict[str, Output] = {}
        for node in program:
            value = self._write(node, [self._values[name] for name in node.inputs])
            value.get_node().set_friendly_name(node.name)
            self._values[node.name] = value

    @property
    def output(self) -> Output:
        """The output integers as float32, (N, outputs, *S): accumulators, or ``q`` of the output's format."""
        last = self._program.nodes[-1]
        value = self._values[last.name]
        if last.output is not None and last.output.zero_point:
            return self._ops.add(value, self._floats(last.output.zero_point)).output(0)
        return value

    def _write(self, node: Node, reads: list[Output]) -> Output:
        writers: dict[type[Node], Callable[..., Output]] = {
            ImageNode: self._read_image,
            ConvolutionNode: self._convolve,
            MaxPoolNode: self._max_pool,
            AvgPoolNode: self._average,
            UpsampleNode: self._upsample,
            ReluNode: self._rectify,
            ConcatNode: self._join,
            AddNode: self._add,
        }
        return writers[type(node)](node, *reads)

    def _read_image(self, node: ImageNode) -> Output:
        values = self._ops.convert(self._image, "f32")
        zero_point = self._written(node).zero_point
        if zero_point:
            values = self._ops.subtract(values, self._floats(zero_point))
        return self._as_bytes(values.output(0), zero_point)

    def _convolve(self, node: ConvolutionNode, x: Output) -> Output:
        if node.geometry.transposed and not self._transposes_in_bytes(node):
            # What passes a rounding is float to OpenVINO, which must not begin with bytes what it does not end in bytes.
            x = self._ops.round(x, "HALF_TO_EVEN").output(0)
        shift = np.zeros(len(node.bias), np.int64) if node.output is None else shift_of(node, self._program)
        sums = self._sums(x, node.weight, node.bias, shift, node.weight_bits, node.geometry)
        if node.output is None:
            return self._ops.relu(sums).output(0) if node.relu else sums
        return self._requantize(sums, node.output, node.relu)

    def _transposes_in_bytes(self, node: ConvolutionNode) -> bool:
        """Whether the plugin has an 8-bit kernel for a transposed convolution, and it is right: those for signed bytes are wrong."""
        geometry = node.geometry
        covered = all(taps >= step for taps, step in zip(node.weight.shape[2:], geometry.stride, strict=True))
        return not self._program.format_of(node.inputs[0]).zero_point and geometry.groups == 1 and covered and geometry.stride[-1] <= 3

    def _sums(self, x: Output, weight: IntArray, bias: IntArray, shift: IntArray, bits: int, geometry: ConvGeometry) -> Output:
        """``(sum(q_w * v) + q_b) * 2**-shift``; exact, because sums and biases stay below 2**24."""
        ops, axes, scale = self._ops, geometry.spatial_axes, _power_of_two(shift)
        weight, geometry = _exact_form(weight, geometry)
        groups = geometry.groups
        if groups == 1 and not geometry.transposed and weight.shape[1] == 1 and _may_be_thin(x, weight, geometry):
            # 8-bit kernels for one input are wrong where an axis is one voxel long; a second input that counts for nothing is right.
            weight, x = np.concatenate([weight, np.zeros_like(weight)], axis=1), ops.concat([x, x], 1).output(0)
        # Rows of the weights are outputs; a transposed convolution's are inputs, and its columns outputs.
        columns = (1, -1) if geometry.transposed else (-1, 1)
        by_channel = scale.reshape(*columns, *[1] * axes)
        if groups > 1:
            by_channel = scale.reshape(groups, *columns, *[1] * axes)
            weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        scaled = ops.multiply(self._stored(weight, bits), self._floats(by_channel))
        space: tuple[list[int], ...] = (list(geometry.stride), list(geometry.padding), list(geometry.padding), list(geometry.dilation))
        if geometry.transposed:
            backward = ops.convolution_backprop_data if groups == 1 else ops.group_convolution_backprop_data
            options = dict(zip(("pads_begin", "pads_end", "dilations"), space[1:], strict=True))
            extra = list(geometry.output_padding) or [0] * axes
            products = backward(x, scaled, strides=space[0], output_padding=extra, **options)
        else:
            products = (ops.convolution if groups == 1 else ops.group_convolution)(x, scaled, *space)
        if not bias.any():
            return products.output(0)
        return ops.add(products, self._floats((bias * scale).reshape(1, -1, *[1] * axes))).output(0)

    def _stored(self, weight: IntArray, bits: int) -> Any:
        """Weights as floats, by way of 8 bits, or they are not taken for bytes."""
        ops, low = self._ops, 2 ** (_INT4_BITS - 1)
        stored = np.ascontiguousarray(weight, dtype=np.int8)
        if self._narrow and bits <= _INT4_BITS and -low <= weight.min(initial=0) and weight.max(initial=0) < low:
            return ops.convert(ops.convert(ops.constant(stored, dtype=self._int4), "i8"), "f32")
        return ops.convert(ops.constant(stored, shared_memory=True), "f32")

    def _max_pool(self, node: MaxPoolNode, x: Output) -> Output:
        padding, dilation = list(node.padding), [1] * len(node.kernel)
        return self._ops.max_pool(x, list(node.stride), dilation, padding, padding, list(node.kernel)).output(0)

    def _average(self, node: AvgPoolNode, x: Output) -> Output:
        # A sum over windows is a convolution of each channel with ones.
        channels = x.get_partial_shape()[1].get_length()
        axes = len(node.kernel)
        geometry = ConvGeometry(node.stride, (0,) * axes, (1,) * axes, groups=channels)
        ones, nothing = np.ones((channels, 1, *node.kernel), np.int64), np.zeros(channels, np.int64)
        shift = np.full(channels, shift_of(node, self._program))
        return self._requantize(self._sums(x, ones, nothing, shift, 8, geometry), self._written(node))

    def _upsample(self, node: UpsampleNode, x: Output) -> Output:
        ops, axes = self._ops, node.spatial_axes
        scales, where = self._floats(np.full(axes, node.factor)), ops.constant(np.arange(2, 2 + axes))
        if node.mode == "nearest":
            options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            return ops.interpolate(x, scales, "nearest", "scales", axes=where, **options).output(0)
        # Means of bytes with weights 1 and 3 over 4 along each axis are multiples of 2**-6: exact in float in any order.
        means = ops.interpolate(x, scales, "linear_onnx", "scales", axes=where, coordinate_transformation_mode="half_pixel")
        return self._requantize(self._times(means.output(0), int(shift_of(node, self._program)) - 2 * axes), self._written(node))

    def _rectify(self, node: ReluNode, x: Output) -> Output:
        return self._requantize(x, self._written(node), relu=True, rounds=False)

    def _join(self, node: ConcatNode, *reads: Output) -> Output:
        return self._ops.concat(list(reads), 1).output(0)

    def _add(self, node: AddNode, first: Output, second: Output) -> Output:
        # In whole numbers: where plain OpenVINO prefers bf16, it adds floats in that.
        ops, exponents = self._ops, [self._program.format_of(name).exponent for name in node.inputs]
        terms = []
        for x, exponent in zip((first, second), exponents, strict=True):
            steps = ops.convert(x, "i32")
            factor = 2 ** (max(exponents) - exponent)
            terms.append(ops.multiply(steps, ops.constant(np.int32(factor))) if factor > 1 else steps)
        total = ops.convert(ops.add(*terms), "f32").output(0)
        shift = int(np.clip(shift_of(node, self._program), _SMALLEST_SHIFT, _LARGEST_SHIFT))
        return self._requantize(self._times(total, shift), self._written(node), node.relu)

    def _requantize(self, x: Output, written: TensorFormat, relu: bool = False, rounds: bool = True) -> Output:
        ops = self._ops
        low, high = 0 if relu else -written.zero_point, written.highest - written.zero_point
        rounded = ops.round(x, "HALF_TO_EVEN") if rounds else x
        if low < high:
            clamped = ops.clamp(rounded, float(low), float(high))
        else:
            clamped = ops.minimum(ops.relu(rounded), self._floats(high))
        return self._as_bytes(clamped.output(0), written.zero_point)

    def _as_bytes(self, x: Output, zero_point: int) -> Output:
        """Integers ``q - zero_point`` as they are, said to be those of a byte."""
        ends = self._floats(-zero_point), self._floats(_BYTE - zero_point)
        return self._ops.fake_quantize(x, *ends, *ends, _BYTE + 1).output(0)

    def _times(self, x: Output, shift: int) -> Output:
        return self._ops.multiply(x, self._floats(2.0**-shift)).output(0) if shift else x

    def _written(self, node: Node) -> TensorFormat:
        return self._program.format_of(node.name)

    def _floats(self, values: float | Sequence[float] | NDArray[Any]) -> Any:
        return self._ops.constant(np.asarray(values, dtype=np.float32))


def _meets_image(kernel: int, dilation: int, padding: int) -> bool:
    """Whether along this axis every window has a tap inside the image, however short that is."""
    reach = dilation * (kernel - 1)
    shortest = max(1, reach + 1 - 2 * padding)
    # From the length of the dilation on, only the ends matter, and they are alike for every length.
    for length in range(shortest, max(shortest, dilation) + 1):
        for start in range(-padding, length + padding - reach):
            if not any(0 <= start + tap * dilation < length for tap in range(kernel)):
                return False
    return True


def _exact_form(weight: IntArray, geometry: ConvGeometry) -> tuple[IntArray, ConvGeometry]:
    """The same convolution in a form whose 8-bit kernels are right."""
    if geometry.transposed and any(step > 1 for step in geometry.dilation):
        # Those of dilated transposed convolutions are wrong; zeros between the taps say the same.
        return _dense(weight, geometry.dilation), replace(geometry, dilation=(1,) * geometry.spatial_axes)
    if not geometry.transposed and geometry.groups > 1 and weight.shape[1] == 1 and weight.shape[0] > geometry.groups:
        # Those of groups with one input and several outputs are wrong at some strides; zeros between the groups say the same.
        return _ungrouped(weight, geometry.groups), replace(geometry, groups=1)
    return weight, geometry


def _may_be_thin(x: Output, weight: IntArray, geometry: ConvGeometry) -> bool:
    """Whether an axis of what a convolution reads or writes is one voxel long, or could be."""
    read = x.get_partial_shape()
    if read.is_dynamic:
        return True
    lengths = list(read.to_shape())[2:]
    for length, taps, stride, padding, dilation in zip(
        lengths, weight.shape[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True
    ):
        if length == 1 or (length + 2 * padding - dilation * (taps - 1) - 1) // stride == 0:
            return True
    return False


def _dense(weight: IntArray, dilation: tuple[int, ...]) -> IntArray:
    """The weights of a dilated convolution with the zeros between its taps written out."""
    length = [step * (taps - 1) + 1 for step, taps in zip(dilation, weight.shape[2:], strict=True)]
    dense = np.zeros((*weight.shape[:2], *length), np.int64)
    dense[(slice(None), slice(None), *(slice(None, None, step) for step in dilation))] = weight
    return dense


def _ungrouped(weight: IntArray, groups: int) -> IntArray:
    """The weights of a convolution in groups of one input, (O, 1, *K), as those of one group, (O, groups, *K)."""
    whole = np.zeros((weight.shape[0], groups, *weight.shape[2:]), np.int64)
    outputs = np.arange(weight.shape[0])
    whole[outputs, outputs // (weight.shape[0] // groups)] = weight[:, 0]
    return whole


def _power_of_two(shift: IntArray) -> NDArray[np.float64]:
    """``2**-shift``, with shifts whose outcome is certain brought into float32's range."""
    return np.exp2(-np.clip(shift, _SMALLEST_SHIFT, _LARGEST_SHIFT).astype(np.float64))
