"""Every test here works on the small phantom, opened anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.search.sweep_files import forget_shared
from tests.small_sessions import small_world


@pytest.fixture(autouse=True)
def _small_phantom() -> Iterator[None]:
    forget_shared()
    with small_world():
        yield
    forget_shared()
