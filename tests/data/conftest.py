"""What the tests of the cache share: a cache in a folder of its own, and a file to be read into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_volumes import Reader, made_array

from medquant.data.stored import ArrayCache


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "cache")


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / "scan").write_bytes(made_array().tobytes())
    return Reader(tmp_path / "scan")
