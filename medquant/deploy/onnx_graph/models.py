"""Whole ONNX models of a program: the one the engine runs, and the one that is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medquant.deploy.engines.exactness import check_float32
from medquant.deploy.onnx_graph.requantize import power_of_two
from medquant.deploy.onnx_graph.translate import Translator, spatial_axes
from medquant.deploy.onnx_graph.writer import GraphWriter
from medquant.errors import EngineMismatchError
from medquant.quant.program import IntegerProgram
from medquant.quant.shapes import infer_shapes

if TYPE_CHECKING:
    from onnx import ValueInfoProto

OPSET = 21
IR_VERSION = 10
IMAGE, LEVELS, MASK = "image", "levels", "mask"

_AXES = ("I", "J", "K")
_NOMINAL_LENGTH = 1024
_WIDEST_GAP = 64


def levels_model(program: IntegerProgram) -> bytes:
    """The serialized model for ONNX Runtime: ``image`` uint8 (N, C, *S) to ``levels`` int32 (N, outputs, *S).

    Raises:
        EngineMismatchError: a node has no exact form; the message names it.
    """
    from onnx import TensorProto

    writer = GraphWriter([IMAGE, LEVELS])
    integers = Translator(program, writer, portable=False, packed=False).translate(IMAGE)
    writer.op("Identity", [integers], "output", LEVELS)
    axes = spatial_axes(program)
    image = _value(IMAGE, TensorProto.UINT8, ["N", program.image.channels, *_AXES[:axes]])
    levels = _value(LEVELS, TensorProto.INT32, ["N", None, *(f"{axis}_out" for axis in _AXES[:axes])])
    return _serialized(writer, [image], [levels], {})


def mask_model(program: IntegerProgram, size_multiple: int, properties: Mapping[str, str]) -> bytes:
    """The serialized model for any runtime: ``image`` float32 (N, C, *S) to ``mask`` uint8 (N, *S) and ``levels`` int32.

    Args:
        program: the network.
        size_multiple: every spatial axis of an image is a multiple of this.
        properties: plain strings that go into the model's metadata.

    Raises:
        EngineMismatchError: a node has no form that is exact in ONNX Runtime and in OpenVINO; the message names it.
    """
    from onnx import TensorProto

    check_float32(program, "onnx export")
    writer = GraphWriter([IMAGE, LEVELS, MASK])
    integers = Translator(program, writer, portable=True, packed=True).translate(_quantized_image(program, writer))
    writer.op("Identity", [integers], "output", LEVELS)
    axes = spatial_axes(program)
    outputs = _outputs(program, size_multiple, axes)
    _decide(program, writer, outputs, axes)
    # Names of their own even where the sizes are equal: ONNX Runtime shares buffers between axes of one name.
    sides = [f"{axis}_out" for axis in _AXES[:axes]]
    image = _value(IMAGE, TensorProto.FLOAT, ["N", program.image.channels, *_AXES[:axes]])
    results = [_value(MASK, TensorProto.UINT8, ["N", *sides]), _value(LEVELS, TensorProto.INT32, ["N", outputs, *sides])]
    return _serialized(writer, [image], results, properties)


def _quantized_image(program: IntegerProgram, writer: GraphWriter) -> str:
    """``clamp(round_half_even(x * 2**exponent) + zero_point)`` as uint8, the steps of ``decide.quantize_image``.

    Spelled out: QuantizeLinear rounds after it has added the zero point in OpenVINO, and other voxels lie on ties then.
    """
    read = program.format_of(program.image.name)
    value = writer.op("Mul", [IMAGE, writer.scalar(2.0**read.exponent, np.float32, "image_factor")], "image_scaled")
    value = writer.op("Round", [value], "image_rounded")
    value = writer.op("Add", [value, writer.scalar(read.zero_point, np.float32, "image_offset")], "image_moved")
    limits = [writer.scalar(limit, np.float32, "image_limit") for limit in (0, read.highest)]
    return writer.cast(writer.op("Clip", [value, *limits], "image_limited"), np.uint8, "image_levels")


def _decide(program: IntegerProgram, writer: GraphWriter, outputs: int, axes: int) -> None:
    """Class numbers from output integers, as ``decide.decide`` has them."""
    if outputs == 1:
        last = program.nodes[-1].output
        zero = writer.scalar(0 if last is None else last.zero_point, np.int32, "nothing")
        found = writer.op("Greater", [LEVELS, zero], "found")
        flat = writer.op("Squeeze", [writer.cast(found, np.uint8, "found_level"), writer.constant(np.array([1]), "channel_axis")], "flat")
        writer.op("Identity", [flat], "decision", MASK)
        return
    # Below 2**24, and scaled by powers of two: float32 holds and compares them exactly.
    values = writer.cast(LEVELS, np.float32, "values")
    exponents = np.asarray(program.output_exponents, dtype=np.int64)
    if len(set(exponents.tolist())) > 1:
        if exponents.max() - exponents.min() > _WIDEST_GAP:
            raise EngineMismatchError(
                f"the outputs of {program.nodes[-1].name} have steps from 2**-{exponents.min()} to 2**-{exponents.max()}, "
                f"expected at most 2**{_WIDEST_GAP} apart; use engine reference"
            )
        factors = power_of_two(exponents.min() - exponents).reshape(-1, *[1] * axes)
        values = writer.op("Mul", [values, writer.constant(factors, "output_factor")], "values_on_grid")
    # The lowest class among those that reach the maximum. ArgMax leaves it to the runtime which of equal values it finds.
    channel_axis = writer.constant(np.array([1]), "channel_axis")
    largest = writer.op("ReduceMax", [values, channel_axis], "largest", keepdims=1)
    reached = writer.op("Equal", [values, largest], "reached")
    numbers = writer.constant(np.arange(outputs, dtype=np.float32).reshape(-1, *[1] * axes), "classes")
    candidates = writer.op("Where", [reached, numbers, writer.scalar(outputs, np.float32, "no_class")], "candidates")
    lowest = writer.op("ReduceMin", [candidates, channel_axis], "lowest", keepdims=0)
    writer.cast(lowest, np.uint8, "decision", MASK)


# --- model ------------------------------------------------------------------------------------------------------------


def _serialized(
    writer: GraphWriter, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], properties: Mapping[str, str]
) -> bytes:
    from onnx import helper

    import medquant

    graph = helper.make_graph(writer.nodes, "medquant", inputs, outputs, writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="medquant")
    model.producer_version = medquant.__version__
    helper.set_model_props(model, dict(properties))
    serialized: bytes = model.SerializeToString()
    return serialized


def _value(name: str, dtype: int, shape: Sequence[int | str | None]) -> ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(name, dtype, shape)


def _outputs(program: IntegerProgram, size_multiple: int, axes: int) -> int:
    """The number of output channels."""
    length = -(-_NOMINAL_LENGTH // size_multiple) * size_multiple
    return infer_shapes(program, (1, program.image.channels, *[length] * axes))[program.nodes[-1].name][1]
