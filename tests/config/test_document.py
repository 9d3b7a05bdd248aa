"""YAML as plain data. Scalars are those of the YAML 1.2.2 specification, section 10.3.2 (its example 10.9 among them)."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medquant.config.document import DocumentError, Entry, ListValue, MappingValue, Place, parse_document, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # traps of YAML 1.1
        ("1e-4", 0.0001), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("Y", "Y"), ("010", 10), ("1:30", "1:30"),
        ("1_000", "1_000"), ("0b11", "0b11"), ("2024-01-02", "2024-01-02"), ("=", "="),
        # the specification's example 10.9
        ("null", None), ("", None), ("true", True), ("True", True), ("FALSE", False), ("0", 0), ("0o7", 7), ("0x3A", 58), ("-19", -19),
        ("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -200000.0), (".inf", math.inf), ("-.Inf", -math.inf),
        ("+.INF", math.inf),
        # near misses are text
        ("tRue", "tRue"), ("-", "-"), ("1e", "1e"), (".", "."), ("e5", "e5"), ("inf", "inf"), ("nan", "nan"), ("0o8", "0o8"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_nan_is_a_number_and_very_long_numbers_are_text() -> None:
    assert math.isnan(float(scalar(".nan") or 0))
    assert scalar("9" * 5000) == "9" * 5000


@pytest.mark.parametrize("text", ["'no'", '"1e-4"', "'010'", '"null"', "'~'"])
def test_quoted_scalars_are_text(text: str) -> None:
    assert parse_document(text) == text[1:-1]


def test_places_are_counted_by_hand() -> None:
    value = parse_document("# a comment\ndata:\n  batch_size: 4\n  patch_size: [8, 16]\neval: {}\n")
    assert value == MappingValue(
        (
            Entry(
                "data",
                Place(2, 1),
                MappingValue((Entry("batch_size", Place(3, 3), 4), Entry("patch_size", Place(4, 3), ListValue((8, 16)))), ()),
            ),
            Entry("eval", Place(5, 1), MappingValue((), ())),
        ),
        (),
    )


def test_doubled_keys_are_noted_and_the_first_is_kept() -> None:
    value = parse_document("a: 1\nb: 2\na: 3\n")
    assert isinstance(value, MappingValue)
    assert value.doubled == (("a", Place(3, 1)),)
    assert [(entry.key, entry.value) for entry in value.entries] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~"])
def test_nothing_is_none(text: str) -> None:
    assert parse_document(text) is None


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", "tags", Place(2, 4)),
        ("a: !!int '3'\n", "tags", Place(1, 4)),
        ("! a\n", "tags", Place(1, 1)),
        ("!include other.yaml\n", "tags", Place(1, 1)),
        (BOMB, "anchors and aliases", Place(1, 4)),
        ("a: *b\n", "anchors and aliases", Place(1, 4)),
        ("a: &x\n  b: 1\nc:\n  <<: *x\n", "anchors and aliases", Place(1, 4)),
        ("%YAML 1.1\n---\na: no\n", "directives", Place(2, 1)),
        ("%TAG ! tag:example.com,2000:\n---\na: 1\n", "directives", Place(2, 1)),
        ("a: 1\n---\nb: 2\n", "second document", Place(2, 1)),
        ("[a]: 1\n", "a key must be a word", Place(1, 1)),
        ("[" * 1000, "nested deeper than 8", Place(1, 9)),
        ("a: [1, 2\n", "not valid YAML", Place(2, 1)),
        ("a: 1\n\tb: 2\n", "not valid YAML", Place(2, 1)),
    ],
)
def test_more_than_plain_data_is_refused_with_its_place(text: str, message: str, place: Place) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        parse_document(text)
    assert caught.value.place == place


def test_control_characters_are_refused() -> None:
    with pytest.raises(DocumentError, match="not valid YAML"):
        parse_document("a: \x00\n")


@given(st.text(alphabet=st.sampled_from(list("ab01 \n\t:-[]{}#&*!%,'\"|>?@`~<=.eE\\_\x00\x85é")), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(DocumentError):
        parse_document(text)
