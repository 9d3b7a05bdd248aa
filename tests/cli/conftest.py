"""What tests of the command line share: a small world to train in, and one finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import small_sessions


@pytest.fixture(autouse=True)
def small_world() -> Iterator[pytest.MonkeyPatch]:
    with small_sessions.small_world() as patch:
        yield patch


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished small run; copy it before changing anything."""
    return small_sessions.finished_run(tmp_path_factory.getbasetemp())
