"""Programs as files for the native loader's executables: real ones, and the bytes of one with its weights.

``python tests/deploy/native_cases.py FOLDER`` writes the seeds of native/tests/fuzz_program.cpp.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from packed_files import every_node, lowered, tiny

from medquant.deploy.native.program import encode_program
from medquant.deploy.self_test import small_program
from medquant.quant.formats import TensorFormat
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


def volumes() -> IntegerProgram:
    """Every type of node in 3D, small; one-bit weights among them, and an end in a format."""
    image, inner = TensorFormat(8, 3, 2), TensorFormat(4, 7, -1)
    ones, twos = (1, 1, 1), (2, 2, 2)
    signs = np.where(np.arange(2 * 1 * 4).reshape(2, 1, 2, 1, 2) % 3 == 0, -1, 1).astype(np.int8)
    spread = np.arange(-4, 4, dtype=np.int8).reshape(2, 1, 1, 2, 2)
    two = np.array([1, -2])
    nodes: tuple[Node, ...] = (
        ImageNode("image", (), image, 1),
        ConvolutionNode("signs", ("image",), inner, signs, two, two, 1, ConvGeometry(ones, (1, 0, 1), ones), True),
        MaxPoolNode("pool", ("signs",), TensorFormat(5, 7, -1), (2, 3, 2), (1, 1, 2), (1, 1, 0)),
        AvgPoolNode("mean", ("pool",), inner, (1, 2, 1), twos),
        UpsampleNode("near", ("mean",), inner, 3, "nearest", 3),
        UpsampleNode("line", ("mean",), inner, 2, "linear", 3),
        ReluNode("relu", ("line",), inner),
        ConcatNode("join", ("relu", "line", "relu"), inner),
        AddNode("sum", ("relu", "line"), image, relu=True),
        ConvolutionNode(
            "up", ("sum",), image, spread, two, two, 3, ConvGeometry(twos, (0, 0, 1), (1, 2, 1), 2, True, (1, 0, 1)), relu=False
        ),
    )
    return IntegerProgram(nodes, (image.exponent,))


REAL_PROGRAMS: dict[str, Callable[[], IntegerProgram]] = {
    "every node": every_node,
    "tiny": tiny,
    "self-test": small_program,
    "volumes": volumes,
    "U-Net": lambda: lowered({}, [])[0],
    "U-Net 3D": lambda: lowered({"dimensions": 3}, [])[0],
    "U-Net transposed": lambda: lowered({"upsample": "transposed"}, [])[0],
}
"""Programs that must load, made when they are asked for."""


def case_file(block: bytes, weights: Sequence[np.ndarray]) -> bytes:
    """What native/tests/case_file.h reads."""
    arrays = b"".join(struct.pack("<I", array.size) + array.tobytes() for array in weights)
    return struct.pack("<I", len(weights)) + arrays + block


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in REAL_PROGRAMS.items():
        (folder / name.replace(" ", "_")).write_bytes(case_file(*encode_program(program())))
