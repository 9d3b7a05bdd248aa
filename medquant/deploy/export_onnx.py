"""Export to one ONNX file that ONNX Runtime and OpenVINO open by themselves, and that gives the same masks in both."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from medquant.data.atomic import write_atomically
from medquant.deploy.metadata import ModelMetadata
from medquant.errors import UsageError
from medquant.quant.program import IntegerProgram

SCHEMA = "1"

_INT16_HIGHEST = 2**15 - 1


def export_onnx(program: IntegerProgram, metadata: ModelMetadata, path: Path, overwrite: bool = False) -> None:
    """Write a program as an ONNX file (opset 21, quantize-dequantize form, weights of at most 4 bits as INT4, no external data).

    Input ``image``: the normalised image, float32 (N, C, *S), quantized inside. Outputs ``mask``: class numbers, uint8
    (N, *S), or 0 and 1 for a network of one output; ``levels``: the output integers, int32 (N, outputs, *S), worth
    ``levels * 2**-exponent`` with the exponents in the file's metadata. Batch and spatial axes are free.

    Args:
        program: the network.
        metadata: what the model file says beside it; preparation, classes and terms of use go into the file's metadata
            properties, named ``medquant.*``. The split, the configuration and the scores do not.
        path: the file.
        overwrite: whether a file that exists is replaced.

    Raises:
        UsageError: the file exists, cannot be written, or onnx is not installed.
        EngineMismatchError: the program has no form that is exact in both runtimes; the message names the node.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already; choose another place, or ask to overwrite it")
    if find_spec("onnx") is None:
        raise UsageError(f"{path}: cannot be written without onnx; pip install onnx")
    from onnx import checker

    from medquant.deploy.onnx_graph import mask_model

    model = mask_model(program, metadata.size_multiple, properties(program, metadata))
    checker.check_model(model, full_check=True)

    def write(stream: BinaryIO) -> None:
        stream.write(model)

    write_atomically(path, write)


def properties(program: IntegerProgram, metadata: ModelMetadata) -> dict[str, str]:
    """What an exported file says beside the network: text or JSON by name."""
    read, last = program.format_of(program.image.name), program.nodes[-1].output
    values = {
        "preparation": metadata.preparation,
        "region": metadata.region,
        "channels": metadata.channels,
        "classes": metadata.classes,
        "scored": metadata.scored,
        "regions": metadata.regions,
        "positive_class": metadata.positive_class,
        "size_multiple": metadata.size_multiple,
        "image_quantization": {"bits": read.bits, "zero_point": read.zero_point, "exponent": read.exponent},
        "output_exponents": program.output_exponents,
        "output_zero_point": 0 if last is None else last.zero_point,
        "needs_vnni": _needing_vnni(program),
        "dataset": metadata.dataset,
        "data_sha256": metadata.data_sha256,
        "intended_use": metadata.intended_use,
        "licence": metadata.licence,
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in values.items()}
    return {"medquant.schema": SCHEMA, **{f"medquant.{name}": text for name, text in texts.items()}}


def _needing_vnni(program: IntegerProgram) -> list[str]:
    """Layers whose pairs of byte products pass 16 bits: x86 processors without VNNI saturate them, whatever the runtime."""
    return [
        node.name
        for node in program.convolutions
        if 2 * int(node.weight_magnitude.max(initial=0)) * program.format_of(node.inputs[0]).highest > _INT16_HIGHEST
    ]
