"""A sweep file read with the place of everything in it, so that every mistake can be told where it is, all of them together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medquant.config.document import DocumentError, ListValue, MappingValue, Place, Value, parse_document
from medquant.config.load import check_source, listed_mistakes
from medquant.config.mistakes import describe_one, unknown_key
from medquant.config.sources import Setting, Source, from_file, read_text
from medquant.config.sweep import Range, SweepFile
from medquant.errors import ConfigError, unknown_name

MAX_FILE_BYTES = 1 << 20
"""Largest sweep file that is read."""

MAX_TRIALS = 100_000
"""Most trials one file may list."""

NAME, SEED = "name", "train.seed"
_PATHS = ("data.path", "data.cache", "train.twin_from", "train.init")
_Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Point:
    """A row of the sweep at one point of its grid: one trial, or one study where a sampler chooses further keys.

    Args:
        name: unique in the sweep.
        label: the same without the training seed: trials of one label differ in their seed alone.
        sources: the layers of its configuration, without the dataset's recipe.
        varied: dotted key → value of what the row and the grid give.
        place: the row, for messages.
    """

    name: str
    label: str
    sources: tuple[Source, ...]
    varied: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class WrittenSweep:
    """A sweep file, every single value of which is right.

    Args:
        path: the file.
        file: its content.
        base: settings of the configuration it starts from.
        common: settings of ``set``.
        rows: settings of ``trials``, one source each; a single empty one where there are none.
        axes: dotted key → one setting a value of ``grid``.
    """

    path: Path
    file: SweepFile
    base: Source
    common: Source
    rows: tuple[tuple[str, Source], ...]
    axes: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)

    def points(self) -> Iterator[Point]:
        """Rows × grid, in the order of the file, the last key of the grid changing fastest."""
        for name, row in self.rows:
            for chosen in itertools.product(*self.axes.values()):
                varied = {setting.key: setting.value for setting in (*row.settings, *chosen)}
                place = row.settings[0].place if row.settings else str(self.path)
                parts = [name] if name else []
                label = parts + [_part(setting) for setting in chosen if setting.key != SEED]
                full = parts + [_part(setting) for setting in chosen]
                sources = (self.base, self.common, row, Source(list(chosen)))
                yield Point(" ".join(full) or self.path.stem, " ".join(label) or self.path.stem, sources, varied, place)

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep and no other, as JSON values: settings instead of places."""
        written = self.file.resolved()
        return {**written, "config": None, "base": {setting.key: setting.value for setting in self.base.settings}}

    def resolve_path(self, key: str, value: object) -> object:
        """A value of a key, from this file's folder where it is a relative path."""
        return _resolved(self.path, key, value)


def read_sweep(path: Path) -> WrittenSweep:
    """Read a sweep file.

    Raises:
        ConfigError: one or more mistakes, each with its place, all in one message.
    """
    try:
        root = parse_document(read_text(path, MAX_FILE_BYTES))
    except DocumentError as error:
        raise ConfigError(f"{_at(path, error.place)}: {error}") from error
    if not isinstance(root, MappingValue):
        raise ConfigError(f"{path}: expected the keys of a sweep ({', '.join(SweepFile.model_fields)}); found none")
    reader = _Reader(path)
    plain = reader.plain(root, ())
    try:
        file = SweepFile.model_validate(plain)
    except ValidationError as error:
        reader.mistakes += [reader.worded(details) for details in error.errors(include_url=False)]
        raise listed_mistakes(reader.mistakes) from error
    written = reader.written(file)
    if reader.mistakes:
        raise listed_mistakes(reader.mistakes)
    return written


class _Reader:
    """Keeps places while a file becomes plain values, and collects mistakes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mistakes: list[str] = []
        self._places: dict[_Loc, Place] = {}

    def plain(self, value: Value, loc: _Loc) -> Any:
        """Values without places; those are noted."""
        if isinstance(value, MappingValue):
            self.mistakes += [f"{_at(self.path, place)}: {key} is given twice; keep one" for key, place in value.doubled]
            for entry in value.entries:
                self._places[(*loc, entry.key)] = entry.place
            return {entry.key: self.plain(entry.value, (*loc, entry.key)) for entry in value.entries}
        if isinstance(value, ListValue):
            return [self.plain(item, (*loc, number)) for number, item in enumerate(value.items)]
        return value

    def at(self, loc: _Loc) -> str:
        """The place of a key; where it has none of its own, of what it stands in or of what it holds."""
        for length in range(len(loc), 0, -1):
            if loc[:length] in self._places:
                return _at(self.path, self._places[loc[:length]])
            inside = [place for known, place in self._places.items() if known[:length] == loc[:length]]
            if inside:
                return _at(self.path, inside[0])
        return str(self.path)

    def worded(self, details: ErrorDetails) -> str:
        """A mistake in the sweep's own keys."""
        loc = details["loc"]
        if details["type"] == "extra_forbidden":
            known = Range if "space" in loc else _model_at(loc)
            names = [field.alias or name for name, field in known.model_fields.items()]
            return f"{self.at(loc)}: {unknown_name('key', str(loc[-1]), names)}"
        where = f"{'.'.join(str(part) for part in loc)}: " if loc and details["type"] == "value_error" else ""
        return f"{self.at(loc)}: {where}{describe_one(details)[1]}"

    def written(self, file: SweepFile) -> WrittenSweep:
        """The sweep, its keys and values checked one by one."""
        base = Source()
        if file.config is not None:
            base = from_file(self.path.parent / file.config)
            self.mistakes += check_source(base)
        common = self._source(file.set, ("set",))
        rows = [self._row(row, number) for number, row in enumerate(file.trials)] or [("", Source())]
        self._check_names([name for name, _ in rows])
        axes = {key: self._axis(key, values) for key, values in file.grid.items()}
        self._check_space(file)
        count = len(rows)
        for values in file.grid.values():
            count *= len(values)
        if count > MAX_TRIALS:
            self.mistakes.append(f"{self.at(('grid',))}: rows × grid are {count} trials; expected at most {MAX_TRIALS}")
        for key in file.grid:
            if any(key in row for row in file.trials):
                self.mistakes.append(f"{self.at(('grid', key))}: {key} is varied by the grid and by a row of trials; keep one")
        return WrittenSweep(self.path, file, base, common, tuple(rows), axes)

    def _row(self, row: Mapping[str, Any], number: int) -> tuple[str, Source]:
        name = row.get(NAME, f"trial {number + 1}")
        if not isinstance(name, str) or not name.strip():
            self.mistakes.append(f"{self.at(('trials', number, NAME))}: name must be text; found {name!r}")
        return str(name), self._source({key: value for key, value in row.items() if key != NAME}, ("trials", number))

    def _check_names(self, names: list[str]) -> None:
        for number, name in enumerate(names):
            if name in names[:number]:
                self.mistakes.append(f"{self.at(('trials', number, NAME))}: the name {name!r} is given twice; every row needs its own")

    def _source(self, values: Mapping[str, Any], loc: _Loc) -> Source:
        source = Source()
        for key, value in values.items():
            source.add(key, _resolved(self.path, key, value), self.at((*loc, key)))
        self.mistakes += check_source(source)
        return source

    def _axis(self, key: str, values: tuple[Any, ...]) -> tuple[Setting, ...]:
        place = self.at(("grid", key))
        if (mistake := unknown_key(key)) is not None:
            self.mistakes.append(f"{place}: {mistake}")
            return ()
        settings = tuple(Setting(key, _resolved(self.path, key, value), place) for value in values)
        for setting in settings:
            self.mistakes += check_source(Source([setting]))
        if len({json.dumps(setting.value, sort_keys=True) for setting in settings}) < len(settings):
            self.mistakes.append(f"{place}: {key} holds a value twice; keep one")
        return settings

    def _check_space(self, file: SweepFile) -> None:
        if file.sample is None:
            return
        for key, allowed in file.sample.space.items():
            place = self.at(("sample", "space", key))
            if (mistake := unknown_key(key)) is not None:
                self.mistakes.append(f"{place}: {mistake}")
                continue
            ends = allowed.choice if allowed.choice is not None else (allowed.low, allowed.high)
            for value in ends:
                given = float(value) if isinstance(value, int) and allowed.choice is None and not allowed.whole else value
                self.mistakes += check_source(Source([Setting(key, _resolved(self.path, key, given), place)]))
            if key in file.grid or any(key in row for row in file.trials):
                self.mistakes.append(f"{place}: {key} is sampled and varied by grid or trials as well; keep one")


def _resolved(path: Path, key: str, value: Any) -> Any:
    """Paths are meant from the sweep file's folder."""
    if key not in _PATHS or not isinstance(value, str) or (key == "data.cache" and value == "off") or not value:
        return value
    return str(path.parent / value)


def _part(setting: Setting) -> str:
    value = setting.value if isinstance(setting.value, str) else json.dumps(setting.value)
    return f"{setting.key.rpartition('.')[2]}={Path(value).name if setting.key in _PATHS else value}"


def _model_at(loc: tuple[int | str, ...]) -> Any:
    held: Any = SweepFile
    for part in loc[:-1]:
        annotation = held.model_fields[str(part)].annotation
        held = next((each for each in (annotation, *getattr(annotation, "__args__", ())) if hasattr(each, "model_fields")), held)
    return held


def _at(file: Path, place: Place | None) -> str:
    return str(file) if place is None else f"{file}:{place.line}:{place.column}"
