"""Damaged model files, and files that are none: every flipped bit, every truncation is caught."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from packed_files import flipped, refused, sealed

from medquant.deploy.packed import load_model
from medquant.errors import CheckpointError

# --- damage -----------------------------------------------------------------------------------------------------------


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


# --- a coarse network inside the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"MEDQUANT", bytes(100), b"PK\x03\x04" + bytes(200), b"\x80\x04cposix\nsystem\n" + bytes(100)])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "m.mq", data, "expected")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path, "no regular file"), (tmp_path / "none.mq", "nothing"), (tmp_path / "pipe", "no regular file")):
        with pytest.raises(CheckpointError, match=f"found {found}, expected a model file"):
            load_model(path)
