"""Programs and metadata for the tests of the packed model file, and the ways to damage and forge one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medquant.config.bits import parse_rules
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import load_model
from medquant.errors import CheckpointError
from medquant.models.unet import UNet, UNetOptions
from medquant.quant.capture import capture
from medquant.quant.fold import simplify
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.lower import lower
from medquant.quant.methods import get_method
from medquant.quant.network import QuantNetwork
from medquant.quant.plan import resolve_plan
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

METADATA = ModelMetadata(
    preparation={
        "normalisation": {"kind": "range", "low": -100, "high": 240.5},
        "grid": {"slice_axis": "axial", "spacing_mm": [0.25, 0.25]},
    },
    size_multiple=4,
    classes={10: "b", 9: "a", 1: "organ", 0: "background"},
    scored=("organ", "a"),
    positive_class=1,
    float_parameters=1234,
    dataset="phantom",
    data_sha256="0" * 64,
    split={"train": ["c1", "c2"], "validation": ["c3"], "test": ["c4"], "rule": "by subject"},
    config={"quant.wbits": 4, "train.lr": 1e-3, "model.block": "conv_norm_act"},
    metrics={"dice": {"organ": {"mean": 0.1 + 0.2, "interval": (0.25, 0.5)}}},
    created_with={"medquant": "0.1.0", "torch": "2.13.0"},
    intended_use="Research; not for diagnosis. Größe, ≤ 8 bits.",
    licence="Apache-2.0",
)


def lowered(options: dict[str, Any], rules: list[str], channels: int = 2) -> tuple[IntegerProgram, int]:
    """A calibrated U-Net as a program, and the parameters of its float form."""
    torch.manual_seed(0)
    network = UNet(UNetOptions(**{"channels": channels, "depth": 2, **options}))
    image = torch.randn(2, 1, *[16] * network.options.dimensions)
    network(image)  # so that batch norm has statistics
    graph = simplify(capture(network.eval(), image))
    quantized = QuantNetwork(graph, resolve_plan(graph, 4, 6, 8, parse_rules(rules)), get_method("fixed_point"))
    quantized.calibrate([image])
    return lower(quantized.eval()), sum(parameter.numel() for parameter in network.parameters())


def convolution(name: str, source: str, shape: tuple[int, ...], bits: int, output: TensorFormat | None, **geometry: Any) -> ConvolutionNode:
    random = np.random.default_rng(len(name))
    axes = len(shape) - 2
    shaped = ConvGeometry(**{"stride": (1,) * axes, "padding": (1,) * axes, "dilation": (1,) * axes, **geometry})
    channels = shape[1] * shaped.groups if shaped.transposed else shape[0]
    weight = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    bias, exponents = random.integers(-300, 300, channels), random.integers(0, 5, channels)
    return ConvolutionNode(name, (source,), output, weight, bias, exponents, bits, shaped, relu=True)


def every_node() -> IntegerProgram:
    """A program with every type of node, and convolutions of odd geometry."""
    image, six, five = TensorFormat(8, 128, 5), TensorFormat(6, 3, 2), TensorFormat(5, 0, -1)
    one = (0, 0)
    nodes: tuple[Node, ...] = (
        ImageNode("image", (), image, 1),
        convolution("strided", "image", (4, 1, 3, 3), 8, six, stride=(2, 2)),
        MaxPoolNode("pool", ("strided",), six, (3, 3), (2, 2), (1, 1)),
        AvgPoolNode("mean", ("pool",), five, (2, 2), (2, 2)),
        UpsampleNode("linear", ("mean",), six, 2, "linear", 2),
        UpsampleNode("nearest", ("linear",), six, 2, "nearest", 2),
        ReluNode("relu", ("nearest",), six),
        ConcatNode("join", ("relu", "strided"), six),
        AddNode("sum", ("join", "join"), five, relu=True),
        convolution("grouped", "sum", (6, 4, 3, 3), 3, six, groups=2, dilation=(2, 2), padding=(2, 2)),
        convolution("up", "grouped", (6, 2, 3, 3), 5, six, transposed=True, groups=2, stride=(2, 2), output_padding=(1, 1)),
        convolution("head", "up", (3, 4, 1, 1), 2, None, padding=one),
    )
    last = nodes[-1]
    if not isinstance(last, ConvolutionNode):
        raise TypeError
    return IntegerProgram(nodes, tuple(int(exponent) + six.exponent for exponent in last.weight_exponents))


def tiny() -> IntegerProgram:
    nodes = (ImageNode("image", (), TensorFormat(8, 0, 5), 1), convolution("head", "image", (1, 1, 3, 3), 5, None))
    return IntegerProgram(nodes, (int(nodes[1].weight_exponents[0]) + 5,))  # type: ignore[attr-defined]


MANY = METADATA.model_copy(update={"positive_class": None, "size_multiple": 16})


def setter(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        target: Any = header
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value

    return change


def same(first: object, second: object) -> bool:
    """Equal in every field, arrays value by value."""
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, tuple):
        return isinstance(second, tuple) and len(first) == len(second) and all(map(same, first, second))
    if dataclasses.is_dataclass(first):
        return type(first) is type(second) and all(same(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
    return first == second


def refused(path: Path, data: bytes, message: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert caught.value.exit_code == 6


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def version_2(data: bytes, change: Callable[[dict[str, Any]], None] = lambda header: None) -> bytes:
    """A file as version 2 wrote it, from one of today."""

    def back(header: dict[str, Any]) -> None:
        del header["metadata"]["scan"]
        change(header)

    return forged(data, back, version=2)


def version_1(data: bytes, change: Callable[[dict[str, Any]], None] = lambda header: None) -> bytes:
    """A file as version 1 wrote it, from one of today."""

    def back(header: dict[str, Any]) -> None:
        del header["coarse"]
        metadata = header["metadata"]
        metadata["normalisation"] = metadata.pop("preparation")["normalisation"]
        for name in ("region", "channels", "regions", "scan"):
            del metadata[name]
        change(header)

    return forged(data, back, version=1)


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def with_header_text(data: bytes, text: bytes, version: int = 3) -> bytes:
    """The file with another header; up to version 2 a header is not deflated."""
    length = struct.unpack("<Q", data[12:20])[0]
    tensors = data[(20 + length + 63) // 64 * 64 : -32]
    stored = text if version < 3 else zlib.compress(text, 9)
    head = data[:8] + struct.pack("<IQ", version, len(stored)) + stored
    return sealed(head + bytes(-len(head) % 64) + tensors)


def forged(data: bytes, change: Callable[[dict[str, Any]], None], version: int = 3) -> bytes:
    header = json.loads(header_text(data))
    change(header)
    return with_header_text(data, json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(), version)


def header_text(data: bytes) -> bytes:
    version, length = struct.unpack("<IQ", data[8:20])
    stored = data[20 : 20 + length]
    return stored if version < 3 else zlib.decompress(stored)


def relu(name: str, source: str, exponent: int = 5) -> dict[str, Any]:
    return {"kind": "relu", "name": name, "inputs": [source], "output": {"bits": 8, "zero_point": 0, "exponent": exponent}}
