"""A table of text cells as plain text, Markdown or CSV, and how the package writes bytes and Dice."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from typing import Literal

from medquant.errors import UsageError

Alignment = Literal["left", "right"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_NOTHING = "–"
_MARKUP = re.compile(r"[\\`*\[\]]")
_NUMBER = re.compile(r"[+-][0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class Table:
    """Column titles and rows of text.

    Args:
        columns: titles.
        rows: each as long as ``columns``.
        alignment: one a column; empty means the first column left, the others right.

    Raises:
        UsageError: a row or the alignment is not as long as ``columns``.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    alignment: tuple[Alignment, ...] = ()

    def __post_init__(self) -> None:
        width = len(self.columns)
        for number, row in enumerate(self.rows, start=1):
            if len(row) != width:
                raise UsageError(f"row {number} of the table has {len(row)} cells, expected {width} ({', '.join(self.columns)})")
        if self.alignment and len(self.alignment) != width:
            raise UsageError(f"the table has {width} columns and {len(self.alignment)} alignments: give one a column, or none")

    def to_text(self) -> str:
        """Columns padded with spaces under a ruled title line; ends with a line break."""
        cells = [[_one_line(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(len(row[c]) for row in cells) for c in range(len(self.columns))]
        lines = ["  ".join(self._padded(row, widths)).rstrip() for row in cells]
        return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]]) + "\n"

    def to_markdown(self) -> str:
        """A GitHub table, aligned in its source too, in which no cell is markup; ends with a line break."""
        cells = [[plain_markdown(cell).replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *(len(row[c]) for row in cells)) for c in range(len(self.columns))]
        rule = [("-" * (width - 1) + ":" if side == "right" else "-" * width) for side, width in zip(self._sides(), widths, strict=True)]
        padded = [self._padded(row, widths) for row in cells]
        return "\n".join(f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]]) + "\n"

    def to_csv(self) -> str:
        """Comma-separated (RFC 4180 quoting), lines ended by a line feed; what a spreadsheet would compute has a ' before it."""
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        writer.writerows([_no_formula(cell) for cell in row] for row in (self.columns, *self.rows))
        return target.getvalue()

    def is_left(self, column: int) -> bool:
        """Whether a column, counted from 0, is aligned to the left."""
        return self._sides()[column] == "left"

    def _sides(self) -> tuple[Alignment, ...]:
        return self.alignment or tuple("left" if c == 0 else "right" for c in range(len(self.columns)))

    def _padded(self, row: list[str], widths: list[int]) -> list[str]:
        return [
            cell.ljust(width) if side == "left" else cell.rjust(width) for cell, width, side in zip(row, widths, self._sides(), strict=True)
        ]


def format_bytes(count: int) -> str:
    """A size in binary units, two decimals above bytes.

    >>> format_bytes(2_422_000)
    '2.31 MiB'
    """
    size, unit = float(count), 0
    # 1023.995 and more would print as 1024.00, which is 1.00 of the next unit
    while abs(size) >= (1024.0 if unit == 0 else 1023.995) and unit < len(_UNITS) - 1:
        size, unit = size / 1024.0, unit + 1
    return f"{count} B" if unit == 0 else f"{size:.2f} {_UNITS[unit]}"


def format_dice(score: float | None) -> str:
    """A score in 0..1 as a figure in 0..100 with two decimals; a dash where there is nothing to score (NaN or None).

    >>> format_dice(0.9534)
    '95.34'
    """
    return _NOTHING if score is None or math.isnan(score) else f"{100.0 * score:.2f}"


def plain_markdown(text: str) -> str:
    """A text on one line of Markdown that is read as it is: no tag, no code, no link, and no picture, which a viewer would fetch."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text)).replace("&", "&amp;").replace("<", "&lt;")


def _no_formula(cell: str) -> str:
    """Class and metric names come from files: one that begins like a formula must not be run by who opens the table."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(cell) else cell


def _one_line(cell: str) -> str:
    return " ".join(cell.split()) if cell.split() else ""
