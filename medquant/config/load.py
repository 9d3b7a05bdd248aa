"""A run's configuration from its layers: defaults, the dataset's recipe, a file, ``-o`` and named options, later ones winning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from medquant.config.mistakes import describe
from medquant.config.schema import Config
from medquant.config.sources import Setting, Source, from_file, from_options, from_overrides, from_recipe
from medquant.errors import ConfigError

# Nobody has made more at once; a file with thousands is no configuration.
_MOST_LISTED = 20


def load_config(
    file: Path | None = None,
    recipe: Mapping[str, object] | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> Config:
    """Put a configuration together.

    Each layer replaces what the ones before it say about a key, lists as a whole. Every layer is checked by itself, so a mistake is
    reported even where a later layer would hide it.

    Args:
        file: YAML file with the sections of :class:`Config`, or None.
        recipe: defaults that suit the dataset, dotted key → value.
        overrides: ``key=value`` as given with ``-o``.
        options: named options, dotted key → value; None stands for an option that was not given.

    Raises:
        ConfigError: one or more mistakes, each with its place, all in one message.
    """
    sources = [from_recipe(recipe or {}), *([from_file(file)] if file else []), from_overrides(overrides), from_options(options or {})]
    mistakes = [line for source in sources for line in check_source(source)]
    if not mistakes:
        joined = join_sources(sources)
        if isinstance(joined, Config):
            return joined
        mistakes = joined
    raise listed_mistakes(mistakes)


def join_sources(sources: Iterable[Source]) -> Config | list[str]:
    """The configuration of sources whose values are right by themselves, or the mistakes that lie between keys."""
    try:
        return Config.model_validate(_nested(setting for source in sources for setting in source.settings))
    except ValidationError as error:
        return [message for _, message in describe(error)]


def listed_mistakes(mistakes: Sequence[str]) -> ConfigError:
    """All mistakes in one error."""
    more = [f"and {len(mistakes) - _MOST_LISTED} more"] if len(mistakes) > _MOST_LISTED else []
    listed = [f"{len(mistakes)} mistakes in the configuration:", *(f"  {line}" for line in (*mistakes[:_MOST_LISTED], *more))]
    return ConfigError(*(mistakes if len(mistakes) == 1 else listed))


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, every key written out; ASCII controls and the like are escaped, so any text survives."""
    lines = []
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {key}: {_yaml_value(item)}" for key, item in value.items()]
        else:
            lines.append(f"{name}: {_yaml_value(value)}")
    return "\n".join(lines) + "\n"


def check_source(source: Source) -> list[str]:
    """What is wrong with a source by itself, a line each."""
    return [*source.mistakes, *_check(source)]


def _check(source: Source) -> list[str]:
    places = {setting.key: setting.place for setting in source.settings}
    try:
        Config.model_validate(_nested(source.settings))
    except ValidationError as error:
        # Mistakes between keys ("") are for the joined configuration: another layer may set the other key.
        return [f"{places[key]}: {message}" for key, message in describe(error) if key]
    return []


def _nested(settings: Iterable[Setting]) -> dict[str, object]:
    sections: dict[str, dict[str, object]] = {}
    root: dict[str, object] = {}
    for setting in settings:
        section, dot, key = setting.key.partition(".")
        option, below, name = key.partition(".")
        if below:
            held = sections.setdefault(section, {}).get(option, {})
            sections[section][option] = {**(held if isinstance(held, dict) else {}), name: setting.value}
        elif dot:
            sections.setdefault(section, {})[key] = setting.value
        else:
            root[setting.key] = setting.value
    return {**root, **sections}


def _yaml_value(value: object) -> str:
    # JSON is YAML; what YAML cannot hold as it stands, or an editor would not show, becomes an escape both know.
    text = json.dumps(value, ensure_ascii=False)
    return "".join(character if character.isprintable() else _escape(ord(character)) for character in text)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
