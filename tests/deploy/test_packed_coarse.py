"""Model files that hold a coarse network. Expected: both programs, and refusal of every damage."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from packed_files import MANY, METADATA, every_node, flipped, forged, header_text, refused, same, sealed, setter, tiny, version_1

from medquant.deploy.packed import load_model, save_model
from medquant.errors import CheckpointError


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
