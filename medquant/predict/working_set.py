"""How much memory a program takes while it runs, from the shapes of its tensors alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from medquant.errors import UsageError
from medquant.quant.program import ConvolutionNode, IntegerProgram, last_readers
from medquant.quant.shapes import infer_shapes

_VALUE_BYTES = {"reference": 8, "torch": 4, "openvino": 4, "onnxruntime": 4, "native": 1}
"""An engine may hold a tensor in a wider type than it needs; the widest it uses is counted, so that more is never taken than said."""

_OUTPUT_BYTES = 4
_CHANNELS_TOGETHER = {"native": 16}
"""An engine's tensors have a multiple of so many channels."""

_WORKSPACES = {"reference": 4.0}
"""Copies of a step's input and output that exist while it runs."""

_MOST_WORKSPACES = 2.0
_WEIGHT_BYTES = 1 + 4
"""Of the integers as read from the file, and of an engine's own copy."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(text: str) -> int:
    """A size as people type it: ``700MB``, ``1.5 GiB``, ``900000``.

    Raises:
        UsageError: it is not a size, or not above 0.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMG]I?)?B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise UsageError(f"{text!r} is no size of memory, expected a number and a unit such as 700MB or 1GiB")
    return size


def program_bytes(program: IntegerProgram) -> int:
    """What a program takes before it runs: its weights, and the engine's copy of them."""
    return sum(node.weight.size for node in program.convolutions) * _WEIGHT_BYTES


def working_bytes(program: IntegerProgram, shape: Sequence[int], engine: str) -> int:
    """The most that is alive at once when a program runs an image (N, C, *S): tensors, a step's workspace, the mask."""
    shapes = infer_shapes(program, shape)
    size = {node.name: _tensor_bytes(shapes[node.name], engine, node is program.nodes[-1]) for node in program}
    last = last_readers(program)
    alive: dict[str, int] = {}
    most = 0.0
    workspaces = _WORKSPACES.get(engine, _MOST_WORKSPACES)
    for node in program:
        alive[node.name] = size[node.name]
        # Only a convolution makes copies in another layout or type.
        own = workspaces * size[node.name] if isinstance(node, ConvolutionNode) else size[node.name]
        most = max(most, sum(alive.values()) + own)
        for name in node.inputs:
            if last[name] == node.name:
                alive.pop(name, None)
    return int(most)


def _tensor_bytes(shape: Sequence[int], engine: str, is_output: bool) -> int:
    value_bytes, together = _VALUE_BYTES.get(engine, 8), _CHANNELS_TOGETHER.get(engine, 1)
    channels = -(-shape[1] // together) * together
    return shape[0] * channels * math.prod(shape[2:]) * (max(value_bytes, _OUTPUT_BYTES) if is_output else value_bytes)
