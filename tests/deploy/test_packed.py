import base64
import dataclasses
import hashlib
import json
import math
import os
import resource
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medquant.config.bits import parse_rules
from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation
from medquant.data.prepared_grid import GridRule
from medquant.deploy.decide import quantize_image
from medquant.deploy.engines import ENGINES
from medquant.deploy.header import Header
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import load_model, save_model
from medquant.errors import CheckpointError
from medquant.evaluate.ledger import weigh_program
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

# One weight width for each of eight layers, so that every width stands in one file.
WIDTHS = ["enc1.conv1=1/", "enc1.conv2=2/3", "enc2.conv1=3/", "enc2.conv2=4/"]
WIDTHS += ["bottom.conv1=5/2", "bottom.conv2=6/", "dec2.conv1=7/", "head=8/"]
NETWORKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plane": ({}, []),
    "volume": ({"dimensions": 3, "upsample": "nearest"}, []),
    "transposed": ({"upsample": "transposed", "out_channels": 3}, []),
    "norm_last": ({"block": "conv_act_norm"}, []),
    "every_width": ({"depth": 3}, WIDTHS),
}


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


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "m.mq"
    save_model(path, tiny(), METADATA)
    return path.read_bytes()


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


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_network_survives_the_file(name: str, tmp_path: Path) -> None:
    program, _ = lowered(*NETWORKS[name])
    metadata = METADATA.model_copy(update={"positive_class": None if len(program.output_exponents) > 1 else 1})
    save_model(tmp_path / "m.mq", program, metadata)
    model = load_model(tmp_path / "m.mq")
    assert same(model.program, program)
    assert model.metadata == metadata
    axes = program.convolutions[0].geometry.spatial_axes
    image = quantize_image(np.random.default_rng(1).normal(size=(1, 1, *[8] * axes)).astype(np.float32), program.format_of("input"))
    for engine in ENGINES.values():
        np.testing.assert_array_equal(engine(model.program).run(image), engine(program).run(image))


def test_every_type_of_node_survives_the_file(tmp_path: Path) -> None:
    program = every_node()
    save_model(tmp_path / "m.mq", program, MANY)
    model = load_model(tmp_path / "m.mq")
    assert same(model.program, program)
    image = np.random.default_rng(1).integers(0, 256, (1, 1, 16, 32)).astype(np.uint8)
    for engine in ENGINES.values():
        np.testing.assert_array_equal(engine(model.program).run(image), engine(program).run(image))


def test_what_is_said_of_the_file_is_what_other_tools_say(tmp_path: Path) -> None:
    path = tmp_path / "m.mq"
    save_model(path, tiny(), METADATA)
    model = load_model(path)
    assert model.size_bytes == path.stat().st_size
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    save_model(path, tiny(), METADATA)
    assert load_model(path).sha256 == model.sha256  # the same model gives the same bytes


def test_classes_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    # As JSON text "10" sorts before "9".
    save_model(tmp_path / "m.mq", tiny(), METADATA)
    assert list(load_model(tmp_path / "m.mq").metadata.classes) == [0, 1, 9, 10]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_any_json_survives_in_the_metadata(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "json.mq"
    metadata = ModelMetadata(**{**METADATA.model_dump(), "metrics": values})
    save_model(path, tiny(), metadata)
    assert load_model(path).metadata == metadata


def test_a_score_that_is_not_defined_is_null() -> None:
    metadata = ModelMetadata(**{**METADATA.model_dump(), "metrics": {"dice": [math.nan, math.inf, np.float64(0.5)]}})
    assert metadata.metrics == {"dice": [None, None, 0.5]}


@pytest.mark.parametrize("change", [{"scored": ("nothing",)}, {"positive_class": 7}, {"size_multiple": 0}, {"author": "x"}])
def test_metadata_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelMetadata(**{**METADATA.model_dump(), **change})


# --- layout -----------------------------------------------------------------------------------------------------------


def test_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Read by hand from the description: prefix, header, tensors at multiples of 64, digest."""
    program = every_node()
    path = tmp_path / "m.mq"
    save_model(path, program, MANY)
    data = path.read_bytes()
    assert data[:8] == b"MEDQUANT"
    version, length = struct.unpack("<IQ", data[8:20])
    assert version == 3
    text = zlib.decompress(data[20 : 20 + length])
    header = json.loads(text)
    assert text == json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    start = (20 + length + 63) // 64 * 64
    assert not any(data[20 + length : start])
    assert [entry[:2] for entry in header["tensors"][:3]] == [["strided", "weight"], ["strided", "bias"], ["strided", "exponents"]]
    for name, role, bits, shape, offset, size_bytes, digest in header["tensors"]:
        position = start + offset
        assert position % 64 == 0
        assert size_bytes == math.ceil(math.prod(shape) * bits / 8)
        stored = hashlib.sha256(data[position : position + size_bytes]).digest()
        assert stored == base64.urlsafe_b64decode(digest + "=")
        if role == "bias":
            np.testing.assert_array_equal(np.memmap(path, "<i4", "r", position, (shape[0],)), program[name].bias)  # type: ignore[attr-defined]
        if role == "exponents":
            mapped = np.memmap(path, "i1", "r", position, (shape[0],))
            np.testing.assert_array_equal(mapped, program[name].weight_exponents)  # type: ignore[attr-defined]
    assert len(data) == position + size_bytes + 32
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]


@pytest.mark.parametrize(("channels", "depth"), [(8, 4), (8, 5), (64, 4)])
def test_size_is_close_to_the_ledger(channels: int, depth: int, tmp_path: Path) -> None:
    program, parameters = lowered({"depth": depth}, [], channels)
    config = {f"section.option_{number}": number / 7 for number in range(30)}
    cases = {"train": [f"slice-{number:03d}" for number in range(30)], "rule": "contiguous blocks"}
    save_model(tmp_path / "m.mq", program, METADATA.model_copy(update={"size_multiple": 16, "config": config, "split": cases}))
    ledger = weigh_program(program, parameters, 4, (1, 1, 32, 32))
    size = (tmp_path / "m.mq").stat().st_size
    assert ledger.parameter_bytes < size <= ledger.parameter_bytes * 1.01 + 16 * 1024


def test_the_papers_network_is_more_than_7_4_times_smaller(tmp_path: Path) -> None:
    # Its 4,837,249 parameters are counted in tests/models; float32 files hold 4 bytes of each.
    program, parameters = lowered({"depth": 4}, [], 64)
    assert parameters == 4_837_249
    save_model(tmp_path / "m.mq", program, METADATA.model_copy(update={"size_multiple": 8}))
    assert 4 * parameters / (tmp_path / "m.mq").stat().st_size >= 7.4


def test_many_cases_and_layers_stay_within_the_room(tmp_path: Path) -> None:
    # 200 case ids take 3 KB as text, 20 nodes with three hashes each 7 KB: deflated they leave room for the rest.
    program, parameters = lowered({"depth": 5}, [], 4)
    cases = {"train": [f"pancreas_{number:03d}_portal_venous" for number in range(200)]}
    save_model(tmp_path / "m.mq", program, METADATA.model_copy(update={"size_multiple": 16, "split": cases}))
    ledger = weigh_program(program, parameters, 4, (1, 1, 32, 32))
    assert (tmp_path / "m.mq").stat().st_size <= ledger.parameter_bytes * 1.01 + 16 * 1024


# --- damage -----------------------------------------------------------------------------------------------------------


def refused(path: Path, data: bytes, message: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert caught.value.exit_code == 6


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def test_any_flipped_bit_is_caught(tiny_file: bytes, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for position in random.choice(len(tiny_file), 200, replace=False):
        refused(tmp_path / "m.mq", flipped(tiny_file, int(position), int(random.integers(8))))


@pytest.mark.slow
def test_every_flipped_bit_is_caught(tiny_file: bytes, tmp_path: Path) -> None:
    for position in range(len(tiny_file)):
        for bit in range(8):
            refused(tmp_path / "m.mq", flipped(tiny_file, position, bit))


def test_every_truncation_is_caught(tiny_file: bytes, tmp_path: Path) -> None:
    lengths = {*range(80), *range(0, len(tiny_file), 37), *range(len(tiny_file) - 40, len(tiny_file))}
    for length in lengths:
        refused(tmp_path / "m.mq", tiny_file[:length])


@pytest.mark.parametrize("more", [b"\0", bytes(64), b"MEDQUANT" * 100])
def test_trailing_bytes_are_caught(tiny_file: bytes, more: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", tiny_file + more, "damaged or incomplete")
    refused(tmp_path / "m.mq", sealed(tiny_file[:-32] + more), "expected .* for the tensors of its header")


def test_a_header_of_2_to_the_60_bytes_is_refused_unread(tiny_file: bytes, tmp_path: Path) -> None:
    for length in (2**60, 2**64 - 1, len(tiny_file)):
        refused(
            tmp_path / "m.mq", sealed(tiny_file[:12] + struct.pack("<Q", length) + tiny_file[20:-32]), f"found a header of {length} bytes"
        )


def test_versions(tiny_file: bytes, tmp_path: Path) -> None:
    newer = sealed(tiny_file[:8] + struct.pack("<I", 4) + tiny_file[12:-32])
    refused(tmp_path / "m.mq", newer, "schema version 4, expected at most 3: made by a newer medquant, upgrade")
    older = with_header_text(tiny_file, header_text(tiny_file), version=0)
    refused(tmp_path / "m.mq", older, "schema version 0, expected 3: no way to upgrade")


def test_every_older_schema_goes_through_the_upgrade_table(tiny_file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(version: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda values: {**values, "metadata": {**values["metadata"], "dataset": values["metadata"]["dataset"] + f", then {version}"}}

    monkeypatch.setattr("medquant.deploy.header._UPGRADES", {0: renamed(1), 1: renamed(2), 2: renamed(3)})
    (tmp_path / "m.mq").write_bytes(with_header_text(tiny_file, header_text(tiny_file), version=0))
    model = load_model(tmp_path / "m.mq")
    assert model.metadata.dataset == "phantom, then 1, then 2, then 3"
    assert same(model.program, tiny())


# --- version 2: a header that is not deflated, nothing of the scans -----------------------------------------------------


def version_2(data: bytes, change: Callable[[dict[str, Any]], None] = lambda header: None) -> bytes:
    """A file as version 2 wrote it, from one of today."""

    def back(header: dict[str, Any]) -> None:
        del header["metadata"]["scan"]
        change(header)

    return forged(data, back, version=2)


def test_a_file_of_version_2_is_read(tiny_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.mq").write_bytes(version_2(tiny_file))
    model = load_model(tmp_path / "m.mq")
    assert same(model.program, tiny())
    assert model.metadata == METADATA.model_copy(update={"scan": {}})
    refused(tmp_path / "m.mq", version_2(tiny_file, setter("metadata", "scan", value={})), "found scan in version 2")


def test_a_header_that_is_a_bomb_or_not_deflated_is_refused(tiny_file: bytes, tmp_path: Path) -> None:
    bomb = with_header_text(tiny_file, b" " * 2**29)
    assert len(bomb) < 2**20
    tracemalloc.start()
    refused(tmp_path / "m.mq", bomb, "more than one deflated JSON of at most 67108864 bytes")
    # The limit, and the buffer that zlib doubles on its way there.
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**26
    tracemalloc.stop()
    text = zlib.compress(header_text(tiny_file))
    for stored, message in (
        (header_text(tiny_file), "found no deflated JSON"),
        (text[:-1], "other than one"),
        (text + b"x", "other than one"),
    ):
        length = struct.unpack("<Q", tiny_file[12:20])[0]
        tensors = tiny_file[(20 + length + 63) // 64 * 64 : -32]
        head = tiny_file[:12] + struct.pack("<Q", len(stored)) + stored
        refused(tmp_path / "m.mq", sealed(head + bytes(-len(head) % 64) + tensors), message)


# --- version 1: a normalisation only, no region, no channels, no coarse network -----------------------------------------


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


def test_a_file_of_version_1_is_read_as_what_it_meant(tiny_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.mq").write_bytes(version_1(tiny_file))
    model = load_model(tmp_path / "m.mq")
    assert same(model.program, tiny())
    assert model.coarse is None
    meta = model.metadata
    # Scans were taken as they were stored, as a whole, with one channel.
    assert Preparation.from_json(meta.preparation) == Preparation(Normalisation("range", -100, 240.5), GridRule("stored", None))
    assert (meta.region, meta.channels, meta.regions) == ({"kind": "whole"}, ("image",), {})
    rest = {"preparation", "region", "channels", "regions", "scan"}
    assert meta.model_dump(exclude=rest) == METADATA.model_dump(exclude=rest)
    save_model(tmp_path / "again.mq", model.program, meta)
    assert struct.unpack("<I", (tmp_path / "again.mq").read_bytes()[8:12]) == (3,)
    assert load_model(tmp_path / "again.mq").metadata == meta


def test_damage_to_a_file_of_version_1_is_caught(tiny_file: bytes, tmp_path: Path) -> None:
    data = version_1(tiny_file)
    random = np.random.default_rng(0)
    for position in random.choice(len(data), 100, replace=False):
        refused(tmp_path / "m.mq", flipped(data, int(position), int(random.integers(8))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("metadata", value=[]), "metadata: Input should be"),
        (setter("metadata", value=None), "metadata: Input should be"),
        (lambda header: header.pop("metadata"), "metadata: Field required"),
        (lambda header: header["metadata"].pop("normalisation"), "found no normalisation in version 1"),
        (setter("metadata", "preparation", value={}), "found preparation in version 1"),
        (setter("coarse", value={"offset": 0, "size_bytes": 1}), "found coarse in version 1"),
        (setter("code", value="print(1)"), "code: Extra inputs"),
        (setter("metadata", "hook", value="os.system"), "hook: Extra inputs"),
    ],
)
def test_forged_files_of_version_1_are_refused(
    change: Callable[[dict[str, Any]], None], message: str, tiny_file: bytes, tmp_path: Path
) -> None:
    refused(tmp_path / "m.mq", version_1(tiny_file, change), message)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"null", b"1", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b'{"a":1, "b":2}'])
def test_headers_of_version_1_that_are_no_header_are_refused(text: bytes, tiny_file: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", with_header_text(tiny_file, text, version=1), "header: ")


def test_a_key_that_stands_twice_is_refused_in_version_1_too(tiny_file: bytes, tmp_path: Path) -> None:
    data = version_1(tiny_file)
    text = header_text(data)
    doubled = with_header_text(data, text[:-1] + b',"nodes":[]}', version=1)
    refused(tmp_path / "m.mq", doubled, "each once")


# --- a coarse network inside the file -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_networks(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of two small networks: the coarse one finds class 1 on a grid of its own."""
    folder = tmp_path_factory.mktemp("two")
    save_model(folder / "coarse.mq", tiny(), COARSE)
    save_model(folder / "m.mq", every_node(), MANY.model_copy(update={"region": REGION}), folder / "coarse.mq")
    return (folder / "m.mq").read_bytes()


REGION = {"kind": "coarse", "margin_mm": 10.0, "minimum": [64, 64]}
COARSE = METADATA.model_copy(update={"dataset": "phantom-coarse", "classes": {0: "background", 1: "foreground"}, "scored": ("foreground",)})


def coarse_part(data: bytes) -> tuple[int, int]:
    """Where the coarse network begins and ends, by the header."""
    entry = json.loads(header_text(data))["coarse"]
    start = (20 + struct.unpack("<Q", data[12:20])[0] + 63) // 64 * 64 + entry["offset"]
    return start, start + entry["size_bytes"]


def test_both_networks_come_back(two_networks: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.mq").write_bytes(two_networks)
    model = load_model(tmp_path / "m.mq")
    assert same(model.program, every_node())
    assert model.metadata.region == REGION
    assert model.coarse is not None
    assert same(model.coarse.program, tiny())
    assert (model.coarse.metadata, model.coarse.coarse) == (COARSE, None)
    # It is a whole model file, at a multiple of 64, with nothing but the digest behind it.
    start, end = coarse_part(two_networks)
    assert (start % 64, end + 32) == (0, len(two_networks))
    (tmp_path / "alone.mq").write_bytes(two_networks[start:end])
    alone = load_model(tmp_path / "alone.mq")
    assert (alone.sha256, alone.size_bytes) == (model.coarse.sha256, model.coarse.size_bytes)
    assert model.coarse.sha256 == hashlib.sha256(two_networks[start:end]).hexdigest()
    assert model.size_bytes == len(two_networks)


def test_any_flipped_bit_of_two_networks_is_caught(two_networks: bytes, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for position in random.choice(len(two_networks), 150, replace=False):
        refused(tmp_path / "m.mq", flipped(two_networks, int(position), int(random.integers(8))), "m.mq: ")


@pytest.mark.slow
def test_every_flipped_bit_of_two_networks_is_caught(two_networks: bytes, tmp_path: Path) -> None:
    for position in range(len(two_networks)):
        for bit in range(8):
            refused(tmp_path / "m.mq", flipped(two_networks, position, bit))


def test_every_flipped_bit_of_the_coarse_network_is_caught_by_itself(two_networks: bytes, tmp_path: Path) -> None:
    # The outer digest is made right again: what lies inside must not rely on it.
    start, end = coarse_part(two_networks)
    random = np.random.default_rng(1)
    for position in random.choice(np.arange(start, end), 100, replace=False):
        refused(tmp_path / "m.mq", sealed(flipped(two_networks, int(position), int(random.integers(8)))[:-32]), "its coarse network: ")


def test_truncations_of_two_networks_are_caught(two_networks: bytes, tmp_path: Path) -> None:
    start, end = coarse_part(two_networks)
    for length in (*range(0, len(two_networks), 211), start - 1, start, start + 1, end - 1):
        refused(tmp_path / "m.mq", two_networks[:length])
        refused(tmp_path / "m.mq", sealed(two_networks[:length]))


def test_coarse_networks_that_lie_elsewhere_or_nowhere_are_refused(two_networks: bytes, tmp_path: Path) -> None:
    entry = json.loads(header_text(two_networks))["coarse"]
    for change, message in (
        (setter("coarse", value=None), "expected .* for the tensors of its header"),
        (setter("coarse", "offset", value=entry["offset"] + 64), "coarse network: found it at"),
        (setter("coarse", "offset", value=0), "coarse network: found it at 0"),
        (setter("coarse", "offset", value=-64), "coarse.offset"),
        (setter("coarse", "offset", value=2**60), "coarse network: found it at"),
        (setter("coarse", "size_bytes", value=entry["size_bytes"] - 1), "expected .* for the tensors of its header"),
        (setter("coarse", "size_bytes", value=2**60), "expected .* for the tensors of its header"),
        (setter("coarse", "size_bytes", value=0), "coarse.size_bytes"),
        (setter("coarse", "more", value=1), "coarse.more: Extra inputs"),
        (setter("coarse", value=[0, 1]), "coarse: "),
    ):
        refused(tmp_path / "m.mq", forged(two_networks, change), message)


def test_a_header_that_names_a_coarse_network_where_there_is_none_is_refused(tiny_file: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", forged(tiny_file, setter("coarse", value={"offset": 128, "size_bytes": 100})), "expected")


def nested(data: bytes, inner: bytes) -> bytes:
    """A file whose coarse network is replaced by another file, its header and digest made to fit."""
    fitting = forged(data, setter("coarse", "size_bytes", value=len(inner)))
    at = coarse_part(fitting)[0]
    return sealed(fitting[:at] + inner)


def test_a_coarse_network_holds_no_other(two_networks: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", nested(two_networks, two_networks), "its coarse network: it holds another one, expected none")
    assert nested(two_networks, two_networks[slice(*coarse_part(two_networks))]) == two_networks


def test_files_nested_a_thousandfold_are_refused_at_the_second(two_networks: bytes, tmp_path: Path) -> None:
    data = two_networks
    for _ in range(300):
        data = nested(two_networks, data)
    refused(tmp_path / "m.mq", data, "its coarse network: it holds another one, expected none")


def test_what_could_not_be_read_again_is_not_written(two_networks: bytes, tmp_path: Path) -> None:
    (tmp_path / "coarse.mq").write_bytes(two_networks)
    with pytest.raises(CheckpointError, match=r"m\.mq: cannot be written: the coarse network .*coarse\.mq holds another one"):
        save_model(tmp_path / "m.mq", every_node(), MANY, tmp_path / "coarse.mq")
    (tmp_path / "coarse.mq").write_bytes(flipped(two_networks, 1000, 3))
    with pytest.raises(CheckpointError, match=r"m\.mq: cannot be written: .*coarse\.mq: damaged"):
        save_model(tmp_path / "m.mq", every_node(), MANY, tmp_path / "coarse.mq")
    with pytest.raises(CheckpointError, match=r"m\.mq: cannot be written: .*none\.mq: found nothing"):
        save_model(tmp_path / "m.mq", every_node(), MANY, tmp_path / "none.mq")
    assert not (tmp_path / "m.mq").exists()


def test_a_coarse_network_of_version_1_serves_as_well(two_networks: bytes, tmp_path: Path) -> None:
    start, end = coarse_part(two_networks)
    (tmp_path / "coarse.mq").write_bytes(version_1(two_networks[start:end]))
    save_model(tmp_path / "m.mq", every_node(), MANY, tmp_path / "coarse.mq")
    model = load_model(tmp_path / "m.mq")
    assert model.coarse is not None
    assert same(model.coarse.program, tiny())


@pytest.mark.parametrize("data", [b"", b"MEDQUANT", bytes(100), b"PK\x03\x04" + bytes(200), b"\x80\x04cposix\nsystem\n" + bytes(100)])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", data, "expected")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path, "no regular file"), (tmp_path / "none.mq", "nothing"), (tmp_path / "pipe", "no regular file")):
        with pytest.raises(CheckpointError, match=f"found {found}, expected a model file"):
            load_model(path)


# --- forged files: the digest is right, the content is not -------------------------------------------------------------


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


def test_the_forger_itself_changes_nothing(tiny_file: bytes) -> None:
    assert forged(tiny_file, lambda header: None) == tiny_file


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unknown kind": (setter("nodes", 1, "kind", value="python"), "kind"),
    "unknown field of a node": (setter("nodes", 1, "hook", value="os.system"), "hook: Extra inputs"),
    "unknown field of the file": (setter("code", value="print(1)"), "code: Extra inputs"),
    "unknown field of the metadata": (setter("metadata", "_target_", value="os.system"), "_target_: Extra inputs"),
    "number as text": (setter("nodes", 1, "weight_bits", value="5"), "weight_bits: Input should be a valid integer"),
    "no nodes": (setter("nodes", value=[]), "expected weight, bias and exponents"),
    "two images": (lambda h: h["nodes"].insert(1, {**h["nodes"][0], "name": "second"}), "has only one"),
    "two of one name": (lambda h: h["nodes"].insert(1, relu("image", "image")), "two nodes are called"),
    "reads itself": (lambda h: h["nodes"].insert(1, relu("loop", "loop")), "which nothing before it writes"),
    "moves into another format": (lambda h: h["nodes"].insert(1, relu("relu", "image", exponent=4)), "into another format"),
    "channels that do not fit": (setter("nodes", 0, "channels", value=2), "reads 1 channels, found 2"),
    "a zero point beyond the width": (setter("nodes", 0, "output", "zero_point", value=256), "zero_point"),
    "a stride of zero": (setter("nodes", 1, "geometry", "stride", value=[0, 1]), "stride"),
    "three axes": (setter("nodes", 1, "geometry", "stride", value=[1, 1, 1]), "do not fit 3 strides"),
    "groups": (setter("nodes", 1, "geometry", "groups", value=2), "in 2 group"),
    "other output exponents": (setter("output_exponents", value=[3, 4]), "exponents are"),
    "a network that ends early": (lambda h: h["nodes"].append(relu("late", "head")), "writes accumulators"),
    "a tensor of nobody": (lambda h: h["tensors"].append(h["tensors"][-1]), "found 4 tensors"),
    "a tensor missing": (lambda h: h["tensors"].pop(), "found 2 tensors"),
    "a huge tensor": (setter("tensors", 0, 3, value=[2**30, 2**30]), "expected 720575940379279360 at 0"),
    "a huge shape": (setter("tensors", 0, 3, value=[2**60]), "tensors.0.3.0: "),
    "a tensor beyond the end": (setter("tensors", 2, 4, value=2**50), f"bytes at {2**50}, expected"),
    "tensors over each other": (setter("tensors", 1, 4, value=0), "bytes at 0, expected 4 at 64"),
    "a negative offset": (setter("tensors", 0, 4, value=-64), "tensors.0.4: "),
    "another width": (setter("tensors", 0, 2, value=4), "expected weight, bias and exponents"),
    "another shape": (setter("tensors", 0, 3, value=[3, 3, 1, 1]), "does not fit together"),
    "another digest": (setter("tensors", 1, 6, value="A" * 43), "tensor head bias: found other bytes"),
    "no positive class": (setter("metadata", "positive_class", value=None), "names no positive class"),
    "a positive class of no name": (setter("metadata", "positive_class", value=5), "must be among classes"),
}


def relu(name: str, source: str, exponent: int = 5) -> dict[str, Any]:
    return {"kind": "relu", "name": name, "inputs": [source], "output": {"bits": 8, "zero_point": 0, "exponent": exponent}}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_refused(name: str, tiny_file: bytes, tmp_path: Path) -> None:
    change, message = FORGERIES[name]
    refused(tmp_path / "m.mq", forged(tiny_file, change), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b"null", "header"),
        (b"{}", "and 1 more"),
    ],
)
def test_headers_that_are_no_header_are_refused(text: bytes, message: str, tiny_file: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", with_header_text(tiny_file, text), message)


def test_another_spelling_of_the_header_is_refused(tiny_file: bytes, tmp_path: Path) -> None:
    text = header_text(tiny_file)
    Header.model_validate_json(text.replace(b'"licence":', b'"licence":"","licence":'))  # a parser alone does not mind
    for other in (text + b" ", text.replace(b'"licence":', b'"licence":"","licence":'), text.replace(b":", b": ", 1)):
        refused(tmp_path / "m.mq", with_header_text(tiny_file, other), "another spelling")


# --- saving -----------------------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow further: what a full disk does, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.mq"
    save_model(path, tiny(), METADATA)
    before = path.read_bytes()
    with file_size_limit(700), pytest.raises(CheckpointError, match=r"m\.mq: cannot be written .*free some space"):
        save_model(path, every_node(), MANY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_rename_or_a_flush_that_fails_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.mq"
    save_model(path, tiny(), METADATA)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(CheckpointError, match=r"m\.mq: cannot be written \(No space left on device\)"):
            save_model(path, every_node(), MANY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the folder .* does not exist"):
        save_model(tmp_path / "none" / "m.mq", tiny(), METADATA)


def changed(**fields: Any) -> IntegerProgram:
    program = tiny()
    return IntegerProgram((program.nodes[0], dataclasses.replace(program.nodes[1], **fields)), program.output_exponents)


UNSTORABLE = {
    "integer 16 does not fit 5 bits": changed(weight=np.full((1, 1, 3, 3), 16)),
    "head exponents: integer 200": IntegerProgram(changed(weight_exponents=np.array([200])).nodes, (205,)),
    "do not fit 32 bits": changed(bias=np.array([2**31 - 1])),
    "for 1 channels": changed(bias=np.array([1, 2])),
    "exponents are": IntegerProgram(tiny().nodes, (9,)),
    "two nodes are called": IntegerProgram((tiny().nodes[0], ReluNode("image", ("image",), TensorFormat(8, 0, 5))), (5,)),
    "starts with its image": IntegerProgram((), ()),
}


@pytest.mark.parametrize("message", UNSTORABLE)
def test_programs_that_cannot_be_stored_leave_no_file(message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        save_model(tmp_path / "m.mq", UNSTORABLE[message], METADATA)
    assert str(tmp_path / "m.mq") in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("program", "positive"), [(tiny(), None), (every_node(), 1)])
def test_the_positive_class_belongs_to_one_output(program: IntegerProgram, positive: int | None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="positive class"):
        save_model(tmp_path / "m.mq", program, MANY.model_copy(update={"positive_class": positive}))
