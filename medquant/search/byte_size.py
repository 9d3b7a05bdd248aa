"""Sizes as people type them: ``600KB``, ``600 KiB``, ``0.5MB``, or a bare number of bytes."""

from __future__ import annotations

import re

from medquant.errors import UsageError

# What is sold by the thousand and what is addressed in powers of two; B alone is a byte.
_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_FORM = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})\s*")


def parse_bytes(text: str, option: str) -> int:
    """Read a size; fractions of a byte are cut off.

    >>> parse_bytes("600KB", "--budget"), parse_bytes("0.5 MiB", "--budget"), parse_bytes("17", "--budget")
    (600000, 524288, 17)

    Args:
        text: as typed.
        option: where it was typed, for the message.

    Raises:
        UsageError: it is no size, or less than a byte.
    """
    found = _FORM.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None:
        raise UsageError(f"{option} {text!r}: not a size; expected a number of bytes, or one with KB, MB (1000s), KiB, MiB (1024s): 600KB")
    # Decimal digits, so that 0.3MB is 300,000 and not one less.
    whole, _, fraction = found[1].partition(".")
    size: int = int(whole + fraction) * unit // 10 ** len(fraction)
    if size < 1:
        raise UsageError(f"{option} {text!r}: less than one byte; give a size of at least 1")
    return size
