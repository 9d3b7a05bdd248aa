"""Export to OpenVINO's own form: ``OUT.xml`` with ``OUT.bin`` beside it, which plain OpenVINO opens, and which gives the same masks."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from medquant.data.atomic import write_atomically
from medquant.deploy.export_onnx import properties
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.openvino_graph import OpenVinoGraph
from medquant.deploy.openvino_import import import_openvino
from medquant.errors import EngineMismatchError, UsageError
from medquant.quant.program import IntegerProgram

if TYPE_CHECKING:
    from openvino import Model, Output

_LARGEST_GAP = 100
"""Sums below 2**24 times 2**-100 are still float32 numbers."""


def export_openvino(program: IntegerProgram, metadata: ModelMetadata, path: Path, overwrite: bool = False) -> None:
    """Write a program as OpenVINO IR, weights of at most 4 bits as int4.

    Input ``image``: the normalised image, float32 (N, C, *S), quantized inside. Outputs ``mask``: class numbers, uint8
    (N, *S), or 0 and 1 for a network of one output; ``levels``: the output integers, int32 (N, outputs, *S), worth
    ``(levels - zero point) * 2**-exponent`` with the numbers in ``rt_info``. Batch and spatial axes are free.

    Args:
        program: the network.
        metadata: what the model file says beside it; what :func:`~medquant.deploy.export_onnx.properties` takes of it goes
            into ``rt_info`` under ``medquant``.
        path: the file that ends in ``.xml``; the weights go beside it, to the same name with ``.bin``, and are there first.
        overwrite: whether files that exist are replaced.

    Raises:
        UsageError: another ending, a file exists, cannot be written, or OpenVINO is not installed.
        EngineMismatchError: the program has no exact form in OpenVINO; the message names the node.
    """
    weights = path.with_suffix(".bin")
    if path.suffix != ".xml":
        raise UsageError(f"{path}: found the ending {path.suffix or 'none'}, expected .xml; the weights go to .bin beside it")
    for file in (path, weights):
        if file.exists() and not overwrite:
            raise UsageError(f"{file}: exists already; choose another place, or ask to overwrite it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first or choose another place")
    if find_spec("openvino") is None:
        raise UsageError(f"{path}: cannot be written without OpenVINO; pip install openvino")
    model = mask_model(program)
    for name, text in properties(program, metadata).items():
        model.set_rt_info(text, name.split("."))
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            written = Path(folder) / "model.xml"
            # Halving floats would round requantization's powers of two.
            import_openvino().save_model(model, str(written), compress_to_fp16=False)
            _keep_float32(written)
            _put_in_place(written, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        raise UsageError(f"{path}: cannot be written ({reason}); free some space or choose another place") from error


def mask_model(program: IntegerProgram) -> Model:
    """The program from the normalised image to mask and output integers, see :func:`export_openvino`."""
    openvino = import_openvino()
    ops = openvino.opset13
    shape = openvino.PartialShape([-1, program.image.channels, *[-1] * program.dimensions])
    image = ops.parameter(shape, openvino.Type.f32, name="image")
    levels = ops.convert(OpenVinoGraph(program, _quantized(ops, image.output(0), program), narrow=True).output, "i32").output(0)
    # The mask from a copy of the levels: with free shapes the plugin scales them in place, and returns them scaled.
    outputs = {"mask": _decided(ops, ops.convert(levels, "f32").output(0), program), "levels": levels}
    for name, value in outputs.items():
        value.get_tensor().set_names({name})
    image.output(0).get_tensor().set_names({"image"})
    return openvino.Model([ops.result(value, name=name) for name, value in outputs.items()], [image], "medquant")


def _quantized(ops: Any, image: Output, program: IntegerProgram) -> Output:
    """``clamp(round_half_even(x * 2**exponent) + zero_point)``, rounded before the zero point is added, as the definition says."""
    read = program.format_of(program.image.name)
    steps = ops.round(ops.multiply(image, np.float32(2.0**read.exponent)), "HALF_TO_EVEN")
    return ops.clamp(ops.add(steps, np.float32(read.zero_point)), 0.0, float(read.highest)).output(0)


def _decided(ops: Any, levels: Output, program: IntegerProgram) -> Output:
    """Class numbers, (N, outputs, *S) → (N, *S): the largest real value, the lower class where two are equal."""
    last, exponents = program.nodes[-1].output, program.output_exponents
    if levels.get_partial_shape()[1].get_length() == 1:
        above = ops.greater(levels, np.float32(0 if last is None else last.zero_point))
        return ops.squeeze(ops.convert(above, "u8"), np.array([1])).output(0)
    values = levels
    if len(set(exponents)) > 1:
        gaps = np.array(exponents) - min(exponents)
        if gaps.max() > _LARGEST_GAP:
            raise EngineMismatchError(f"export to OpenVINO compares classes in float32, but their steps are 2**{gaps.max()} apart")
        axes = levels.get_partial_shape().rank.get_length() - 2
        values = ops.multiply(levels, (2.0**-gaps).astype(np.float32).reshape(1, -1, *[1] * axes)).output(0)
    first = ops.topk(values, np.int32(1), 1, "max", "index", index_element_type="i32", stable=True).output(1)
    return ops.squeeze(ops.convert(first, "u8"), np.array([1])).output(0)


def _keep_float32(path: Path) -> None:
    """Mark every operation as one whose floats stay 32 bits: where processors have bf16, plain OpenVINO would take that and round.

    The attribute is one of OpenVINO's own (``DisablePrecisionConversion``), but Python cannot set it.
    """
    document = ElementTree.parse(path)
    for layer in document.iterfind("./layers/layer"):
        if layer.get("type") not in ("Const", "Parameter", "Result"):
            notes = layer.find("rt_info")
            if notes is None:
                notes = ElementTree.SubElement(layer, "rt_info")
            ElementTree.SubElement(notes, "attribute", name="DisablePrecisionConversion", version="0", value="dynamic:f16,bf16")
    document.write(path, encoding="utf-8", xml_declaration=True)


def _put_in_place(written: Path, path: Path) -> None:
    def write_weights(stream: BinaryIO) -> None:
        with written.with_suffix(".bin").open("rb") as read:
            shutil.copyfileobj(read, stream)
        # An old description never stands beside new weights, which it would read as its own; it goes when these are on the disk.
        path.unlink(missing_ok=True)

    def write_description(stream: BinaryIO) -> None:
        stream.write(written.read_bytes())

    write_atomically(path.with_suffix(".bin"), write_weights)
    write_atomically(path, write_description)
