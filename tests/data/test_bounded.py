"""Small files read with a limit: what is no file is refused at once. Expected: the bytes that were written, or an OSError."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from medquant.data.bounded import read_bounded, read_bounded_json


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A read that waits for a pipe ends the test."""
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="more than"):
        read_bounded(tmp_path / "file", 4)
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", 5) == b"12345"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(OSError, match=r"found a pipe, device or folder|Is a directory"):
            read_bounded(path, 100)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "nothing", 100)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        read_bounded(tmp_path / "file", 5)
        with pytest.raises(OSError, match="more than"):
            read_bounded(tmp_path / "file", 1)
        with pytest.raises(OSError, match="found a pipe"):
            read_bounded(tmp_path, 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_json_is_read_and_depth_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 0.5, null]}')
    assert read_bounded_json(path) == {"a": [1, 0.5, None]}
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_bounded_json(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        read_bounded_json(path)
