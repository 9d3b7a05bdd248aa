"""Model files of older schemas. Expected: what they meant when they were written."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed_files import METADATA, flipped, header_text, refused, same, sealed, setter, tiny, version_1, version_2, with_header_text

from medquant.data.normalise import Normalisation
from medquant.data.prepared import Preparation
from medquant.data.prepared_grid import GridRule
from medquant.deploy.packed import load_model, save_model

# --- damage -----------------------------------------------------------------------------------------------------------


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


# --- version 2: a header that is not deflated, nothing of the scans ---------------------------------------------------


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


# --- version 1: a normalisation only, no region, no channels, no coarse network ---------------------------------------


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
