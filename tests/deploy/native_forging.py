"""A small program as fields, turned into the bytes that the native library reads: for forging what the package never writes."""

from __future__ import annotations

import copy
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGE, CONVOLUTION, MAX_POOL, AVG_POOL, UPSAMPLE, RELU, CONCAT, ADD = range(8)


@dataclass
class Forged:
    """One node: what all have, then its own fields in the order in which they are written."""

    kind: int
    name: bytes
    inputs: list[int]
    accumulates: int = 0
    format: tuple[int, int, int] = (8, 0, 0)
    own: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        own = [int(value) for each in self.own.values() for value in np.ravel(each)]
        head = words(self.kind, len(self.name)) + self.name + words(len(self.inputs), *self.inputs)
        return head + words(self.accumulates, *self.format, *own)


@dataclass
class ForgedProgram:
    nodes: list[Forged]
    weights: list[np.ndarray]
    axes: int = 2
    magic: bytes = b"MQNP"
    version: int = 1
    count: int | None = None
    after: bytes = b""

    def to_bytes(self) -> bytes:
        count = len(self.nodes) if self.count is None else self.count
        return self.magic + words(self.version, self.axes, count) + b"".join(node.to_bytes() for node in self.nodes) + self.after

    def __getitem__(self, name: str) -> Forged:
        return next(node for node in self.nodes if node.name == name.encode())


def words(*values: int) -> bytes:
    """Little endian, 32 bits each; negative ones in two's complement."""
    return b"".join(struct.pack("<I", value % 2**32) for value in values)


def convolution(outputs: int, inputs: int, kernel: tuple[int, ...], index: int, bits: int = 4, **fields: Any) -> dict[str, Any]:
    axes = len(kernel)
    return {
        "bits": bits, "relu": 1, "transposed": 0, "groups": 1, "kernel": kernel, "stride": [1] * axes, "padding": [0] * axes,
        "dilation": [1] * axes, "output_padding": [0] * axes, "out_channels": outputs, "in_channels": inputs, "index": index,
        "bias": [5] * outputs, "exponents": [2] * outputs, **fields,
    }  # fmt: skip


def every_kind() -> ForgedProgram:
    """A program that loads, with every kind of node."""
    eight, six = (8, 3, 2), (6, 3, 2)
    nodes = [
        Forged(IMAGE, b"image", [], 0, eight, {"channels": 2}),
        Forged(CONVOLUTION, b"conv", [0], 0, six, convolution(4, 2, (3, 3), 0, groups=2, padding=[1, 1])),
        Forged(MAX_POOL, b"pool", [1], 0, six, {"kernel": [2, 3], "stride": [2, 1], "padding": [1, 0]}),
        Forged(AVG_POOL, b"mean", [2], 0, (7, 9, -4), {"kernel": [2, 1], "stride": [1, 3]}),
        Forged(UPSAMPLE, b"near", [3], 0, (8, 9, -4), {"factor": 3, "mode": 0}),
        Forged(UPSAMPLE, b"line", [4], 0, six, {"factor": 2, "mode": 1}),
        Forged(RELU, b"relu", [5], 0, six),
        Forged(CONCAT, b"join", [5, 6], 0, (7, 3, 2)),
        Forged(ADD, b"sum", [7, 7], 0, six, {"relu": 0}),
        Forged(CONVOLUTION, b"up", [8], 0, six, convolution(6, 8, (2, 2), 1, groups=2, transposed=1, output_padding=[1, 0])),
        Forged(CONVOLUTION, b"head", [9], 1, (0, 0, 0), convolution(3, 6, (1, 1), 2, bits=1)),
    ]
    weights = [np.full((4, 1, 3, 3), -8, np.int8), np.full((8, 3, 2, 2), 7, np.int8), np.ones((3, 6, 1, 1), np.int8)]
    return ForgedProgram(nodes, weights)


def one_convolution(weight: np.ndarray, bias: int = 0, zero_point: int = 0, bits: int = 8, **fields: Any) -> ForgedProgram:
    """An image and a convolution that writes accumulators; an output channel for each of the weight's first axis."""
    outputs, inputs = weight.shape[:2]
    if fields.get("transposed"):
        inputs, outputs = outputs, inputs
    own = convolution(outputs, inputs, weight.shape[2:], 0, 8, bias=[bias] * outputs, **fields)
    image = Forged(IMAGE, b"image", [], 0, (bits, zero_point, 0), {"channels": inputs})
    return ForgedProgram([image, Forged(CONVOLUTION, b"head", [0], 1, (0, 0, 0), own)], [weight.astype(np.int8)])


def changed(program: ForgedProgram, node: str, **fields: Any) -> ForgedProgram:
    """A copy with fields of one node replaced."""
    other = copy.deepcopy(program)
    target = other[node]
    for name, value in fields.items():
        if hasattr(target, name):
            setattr(target, name, value)
        else:
            target.own[name] = value
    return other
