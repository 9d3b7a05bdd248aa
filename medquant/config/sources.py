"""Where settings come from: a dataset's recipe, a file, ``-o`` and named options. Each source becomes settings with places."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medquant.config.document import DocumentError, Entry, ListValue, MappingValue, Place, Value, parse_document
from medquant.config.mistakes import KEYS, SECTIONS, TOP_KEYS, shown, unknown_key

MAX_FILE_BYTES = 1 << 16
"""Largest configuration file that is read."""

_MAPPINGS = ("quant.options", "model.arguments")
"""Keys whose value is a mapping."""

# Named options whose name on the command line is not the last part of the key.
_OPTION_NAMES = {"data.path": "--data", "model.name": "--model"}


@dataclass(frozen=True)
class Setting:
    """One value for one key, and where it was given."""

    key: str
    value: object
    place: str


@dataclass
class Source:
    """What one source says. ``mistakes`` are whole lines, place included."""

    settings: list[Setting] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def add(self, key: str, value: object, place: str) -> None:
        """Take a setting, or note that there is no such key."""
        mistake = unknown_key(key)
        if mistake is None:
            self.settings.append(Setting(key, value, place))
        else:
            self.mistakes.append(f"{place}: {mistake}")


def from_recipe(recipe: Mapping[str, object]) -> Source:
    """Settings of a dataset's recipe: dotted key → value."""
    source = Source()
    for key, value in recipe.items():
        source.add(key, value, "dataset recipe")
    return source


def from_options(options: Mapping[str, object]) -> Source:
    """Settings of named options, by dotted key; None means that the option was not given."""
    source = Source()
    for key, value in options.items():
        if value is not None:
            name = _OPTION_NAMES.get(key, "--" + key.rpartition(".")[2].replace("_", "-"))
            source.add(key, os.fspath(value) if isinstance(value, os.PathLike) else value, name)
    return source


def from_overrides(overrides: Sequence[str]) -> Source:
    """Settings of ``-o key=value``; the value is a YAML scalar or a list in brackets, and the last one for a key counts."""
    source = Source()
    for text in overrides:
        place = f"-o {text}"
        key, equals, written = text.partition("=")
        if not equals:
            source.mistakes.append(f"{place}: expected key=value, for example -o train.lr=1e-3")
            continue
        try:
            value = parse_document(written)
        except DocumentError as error:
            source.mistakes.append(f"{place}: {error}")
            continue
        if isinstance(value, MappingValue) and key.strip() not in _MAPPINGS:
            source.mistakes.append(
                f"{place}: the value must be one value or a list in brackets; found a mapping (quote text that holds ': ')"
            )
            continue
        source.add(key.strip(), _plain(value), place)
    return source


def from_file(file: Path) -> Source:
    """Settings of a YAML (or JSON) file."""
    source = Source()
    try:
        root = parse_document(read_text(file))
    except DocumentError as error:
        source.mistakes.append(f"{_at(file, error.place)}: {error}")
        return source
    if root is None:
        return source
    if not isinstance(root, MappingValue):
        source.mistakes.append(f"{file}: expected sections ({', '.join(SECTIONS)}); found {shown(_plain(root))}")
        return source
    _note_doubled(source, file, "", root)
    for entry in root.entries:
        if entry.key in SECTIONS:
            _add_section(source, file, entry)
        elif entry.key in KEYS:
            section, _, key = entry.key.partition(".")
            source.mistakes.append(f"{_at(file, entry.place)}: write {entry.key!r} as {key!r} below '{section}:'")
        elif entry.key in TOP_KEYS or not isinstance(entry.value, MappingValue):
            source.add(entry.key, _plain(entry.value), _at(file, entry.place))
        else:
            # All keys below would be unknown too; one line about the section says enough.
            source.mistakes.append(f"{_at(file, entry.place)}: {unknown_key(entry.key)}")
    return source


def _add_section(source: Source, file: Path, section: Entry) -> None:
    if section.value is None:
        return
    if not isinstance(section.value, MappingValue):
        found = shown(_plain(section.value))
        source.mistakes.append(
            f"{_at(file, section.place)}: {section.key} must hold keys ({', '.join(SECTIONS[section.key])}); found {found}"
        )
        return
    _note_doubled(source, file, section.key + ".", section.value)
    for entry in section.value.entries:
        source.add(f"{section.key}.{entry.key}", _plain(entry.value), _at(file, entry.place))


def _note_doubled(source: Source, file: Path, prefix: str, mapping: MappingValue) -> None:
    for key, place in mapping.doubled:
        source.mistakes.append(f"{_at(file, place)}: {prefix}{key} is given twice; keep one")


def read_text(file: Path, most_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a YAML file.

    Raises:
        DocumentError: it is none, or larger than ``most_bytes``.
    """
    try:
        # Devices and pipes would be read without end.
        if file.exists() and not file.is_file():
            raise DocumentError("not a file; expected a YAML file")
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DocumentError(f"cannot be read: {reason}; expected a YAML file") from error
    if len(content) > most_bytes:
        raise DocumentError(f"larger than {most_bytes // 1024} KiB; a configuration is a few lines")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise DocumentError("not UTF-8 text; save the file as UTF-8", Place(line, column)) from error


def _at(file: Path, place: Place | None) -> str:
    return str(file) if place is None else f"{file}:{place.line}:{place.column}"


def _plain(value: Value) -> object:
    if isinstance(value, MappingValue):
        return {entry.key: _plain(entry.value) for entry in value.entries}
    if isinstance(value, ListValue):
        return [_plain(item) for item in value.items]
    return value
