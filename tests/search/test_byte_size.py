"""Sizes as typed; KB and MB are thousands (IEC 80000-13), KiB and MiB powers of 1024."""

from __future__ import annotations

import pytest

from medquant.errors import UsageError
from medquant.search.byte_size import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("600KB", 600_000), ("600 KiB", 614_400), ("0.5MB", 500_000), ("0.3mb", 300_000), ("12MiB", 12_582_912), ("38400", 38_400), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--budget") == size


@pytest.mark.parametrize("text", ["", "KB", "-3KB", "1e3", "6oo", "600 K B", "600KBs", "1_000", "0", "0.1B", "٤KB", "nan", "inf"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_bytes(text, "--budget")
