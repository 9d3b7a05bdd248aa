"""YAML 1.2 as plain data with places: mappings, lists and scalars, each knowing its line and column. Nothing else is let in.

Anchors, aliases, tags, directives and second documents are refused while the text is still a stream of events, before anything is
built from it. Scalars are read by the core schema of YAML 1.2.2 (section 10.3.2) alone, so ``1e-4`` is a number, ``no`` is text and
``010`` is ten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, Event, NodeEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_DEPTH = 8
"""Deepest nesting that is read; a configuration needs three."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INF = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)")
# Python refuses to read longer whole numbers, and no field takes one.
_LONGEST_NUMBER = 300


@dataclass(frozen=True)
class Place:
    """Line and column in a text, counted from 1."""

    line: int
    column: int


class DocumentError(Exception):
    """A text that is no plain YAML document.

    Args:
        message: what is wrong.
        place: where, if known.
    """

    def __init__(self, message: str, place: Place | None = None) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True)
class Entry:
    """A key of a mapping, its place, and what stands behind it."""

    key: str
    place: Place
    value: Value


@dataclass(frozen=True)
class MappingValue:
    """A mapping: its entries in order. A doubled key is in ``doubled``, with its place, and only its first value in ``entries``."""

    entries: tuple[Entry, ...]
    doubled: tuple[tuple[str, Place], ...]


@dataclass(frozen=True)
class ListValue:
    """A list."""

    items: tuple[Value, ...]


Scalar = str | int | float | bool | None
Value = MappingValue | ListValue | Scalar


def parse_document(text: str) -> Value:
    """Read one YAML document; an empty one is None.

    Raises:
        DocumentError: the text is not YAML, or uses more of it than plain data.
    """
    try:
        # Passes over the events first: composing would already follow aliases and nest as deep as the text does.
        _check_events(_yaml().parse(text))
        root = _yaml().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = None if mark is None else Place(mark.line + 1, mark.column + 1)
        raise DocumentError(f"not valid YAML: {error.problem or error.context}", place) from error
    except YAMLError as error:
        raise DocumentError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    return None if root is None else _value(root)


def scalar(text: str) -> Scalar:
    """What an unquoted scalar means in the core schema of YAML 1.2."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INF.fullmatch(text) or _NAN.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _check_events(events: Iterator[Event]) -> None:
    depth = documents = 0
    for event in events:
        place = _place(event)
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if event.version or event.tags:
                raise DocumentError("directives (%YAML, %TAG) above this line are not read; leave them out", place)
            if documents > 1:
                raise DocumentError("a second document starts here; expected one", place)
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor is not None):
            raise DocumentError("anchors and aliases (& and *) are not read; write the value out, or quote it", place)
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
            raise DocumentError("tags (!) are not read; write a plain value, or quote it", place)
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise DocumentError(f"nested deeper than {MAX_DEPTH} levels", place)


def _value(node: Node) -> Value:
    if isinstance(node, MappingNode):
        return _mapping(node)
    if isinstance(node, SequenceNode):
        return ListValue(tuple(_value(item) for item in node.value))
    if not isinstance(node, ScalarNode):
        raise DocumentError("found something that is no mapping, list or value", _place(node))
    # A quoted or block scalar is text whatever it looks like.
    return scalar(node.value) if node.style is None else str(node.value)


def _mapping(node: MappingNode) -> MappingValue:
    entries: dict[str, Entry] = {}
    doubled = []
    for key_node, value_node in node.value:
        place = _place(key_node)
        if not isinstance(key_node, ScalarNode):
            raise DocumentError("a key must be a word; found a list or mapping", place)
        key = str(key_node.value)
        if key in entries:
            doubled.append((key, place))
        else:
            entries[key] = Entry(key, place, _value(value_node))
    return MappingValue(tuple(entries.values()), tuple(doubled))


def _place(item: Event | Node) -> Place:
    return Place(item.start_mark.line + 1, item.start_mark.column + 1)
