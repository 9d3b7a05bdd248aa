"""Tables and figures in text: expected strings are written out by hand; CSV is read back by the standard library."""

from __future__ import annotations

import csv
import io
import math

import pytest

from medquant.errors import UsageError
from medquant.report.tables import Table, format_bytes, format_dice

TABLE = Table(columns=("layer", "bits"), rows=(("enc1", "4"), ("bottleneck", "32")))


def test_plain_text() -> None:
    assert TABLE.to_text() == "layer       bits\n----------  ----\nenc1           4\nbottleneck    32\n"


def test_markdown() -> None:
    assert TABLE.to_markdown() == "| layer      | bits |\n| ---------- | ---: |\n| enc1       |    4 |\n| bottleneck |   32 |\n"


def test_alignment_is_taken_over() -> None:
    table = Table(("a", "b"), (("x", "y"),), alignment=("right", "left"))
    assert table.to_markdown() == "|   a | b   |\n| --: | --- |\n|   x | y   |\n"


def test_markdown_cells_cannot_break_the_table() -> None:
    table = Table(("a", "b"), (("x|y", "two\nlines"),))
    lines = table.to_markdown().splitlines()
    assert len(lines) == 3
    assert lines[2] == "| x\\|y | two lines |"


def test_markdown_cells_hold_no_link_and_no_picture() -> None:
    # A picture would be fetched by whoever looks at the table.
    table = Table(("a", "b"), (("![x](http://example.org/x.png)", "`a` \\| *b* <i> &amp;"),))
    assert table.to_markdown().splitlines()[2] == r"| !\[x\](http://example.org/x.png) | \`a\` \\\| \*b\* &lt;i> &amp;amp; |"


def test_csv_reads_back_as_written() -> None:
    rows = (('quote " and, comma', "1"), ("line\nbreak", ""))
    text = Table(("a", "b"), rows).to_csv()
    assert list(csv.reader(io.StringIO(text))) == [["a", "b"], *map(list, rows)]


def test_an_empty_table_still_has_its_titles() -> None:
    assert Table(("a", "b"), ()).to_text() == "a  b\n-  -\n"


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(UsageError, match=r"row 2 .* 1 cells, expected 2"):
        Table(("a", "b"), (("1", "2"), ("3",)))
    with pytest.raises(UsageError, match="1 alignments"):
        Table(("a", "b"), (), alignment=("left",))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (1024**2 - 1, "1.00 MiB"),  # not 1024.00 KiB
        (1024**2, "1.00 MiB"),
        (2_422_000, "2.31 MiB"),
        (5 * 1024**3, "5.00 GiB"),
        (3000 * 1024**4, "3000.00 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("score", "text"), [(0.9534, "95.34"), (1.0, "100.00"), (0.0, "0.00"), (-0.0221, "-2.21"), (math.nan, "–"), (None, "–")]
)
def test_dice(score: float | None, text: str) -> None:
    assert format_dice(score) == text
