"""The packed model file: round trips, layout and saving. Expected: the program itself, the layout by hand."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import resource
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_files import MANY, METADATA, every_node, lowered, same, tiny
from pydantic import ValidationError

from medquant.deploy.decide import quantize_image
from medquant.deploy.engines import ENGINES
from medquant.deploy.metadata import ModelMetadata
from medquant.deploy.packed import load_model, save_model
from medquant.errors import CheckpointError
from medquant.evaluate.ledger import weigh_program
from medquant.quant.formats import TensorFormat
from medquant.quant.program import (
    IntegerProgram,
    ReluNode,
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
    for engine in (engine for engine in ENGINES.values() if engine.unavailable() is None):
        np.testing.assert_array_equal(engine(model.program).run(image), engine(program).run(image))


def test_every_type_of_node_survives_the_file(tmp_path: Path) -> None:
    program = every_node()
    save_model(tmp_path / "m.mq", program, MANY)
    model = load_model(tmp_path / "m.mq")
    assert same(model.program, program)
    image = np.random.default_rng(1).integers(0, 256, (1, 1, 16, 32)).astype(np.uint8)
    for engine in (engine for engine in ENGINES.values() if engine.unavailable() is None):
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
