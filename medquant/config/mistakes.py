"""How a mistake in a configuration is worded: the key, what was expected, what was found, and near matches of unknown keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medquant.config.schema import Config, Section
from medquant.errors import unknown_name

SECTIONS: Mapping[str, tuple[str, ...]] = {
    name: tuple(field.annotation.model_fields)
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
"""Keys of every section of a configuration."""

KEYS: tuple[str, ...] = tuple(f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys)
"""All keys of sections, dotted."""

TOP_KEYS: tuple[str, ...] = tuple(name for name in Config.model_fields if name not in SECTIONS)
"""Keys outside sections."""

_LONGEST_SHOWN = 60

# An option of the method; which there are only the method knows.
_OPTION = re.compile(r"quant\.options\.[A-Za-z][A-Za-z0-9_]{0,63}")

# Error types of pydantic, each with what was expected; {…} are the limits pydantic reports.
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "missing": "given",
    "too_long": "a list of at most {max_length}",
    "too_short": "a list of at least {min_length}",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def unknown_key(key: str) -> str | None:
    """What is wrong with a dotted key, or None if it is the key of a value."""
    if key in KEYS or key in TOP_KEYS or _OPTION.fullmatch(key):
        return None
    section, _, field = key.partition(".")
    if key in SECTIONS:
        return f"{key} is a section, not a value; its keys are {', '.join(f'{key}.{name}' for name in SECTIONS[key])}"
    if not field:
        homes = [known for known in KEYS if known.partition(".")[2] == key]
        if homes:
            return f"unknown key {key!r}; did you mean {' or '.join(repr(home) for home in homes)}?"
        return unknown_name("key", key, [*SECTIONS, *TOP_KEYS])
    homes = [known for known in KEYS if known.partition(".")[2] == field]
    near = homes or difflib.get_close_matches(key, KEYS, n=3, cutoff=0.7)
    if near:
        return f"unknown key {key!r}; did you mean {' or '.join(repr(name) for name in near)}?"
    if section in SECTIONS:
        return f"unknown key {key!r}; {section} has {', '.join(SECTIONS[section])}"
    return unknown_name("section", section, SECTIONS)


def describe(error: ValidationError) -> list[tuple[str, str]]:
    """Reword the errors of pydantic.

    Returns:
        (dotted key, message) of each; the key is "" for a mistake that lies between several keys.
    """
    return [describe_one(details) for details in error.errors(include_url=False)]


def shown(value: object) -> str:
    """A value as it appears in a message, cut to a readable length."""
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def describe_one(details: ErrorDetails) -> tuple[str, str]:
    """One of :func:`describe`."""
    names = [part for part in details["loc"] if isinstance(part, str)]
    numbers = [part for part in details["loc"] if isinstance(part, int)]
    # Below a section's key lie options, each with a place of its own; pydantic adds the type it tried last.
    key = ".".join(names[: 3 if names[:2] == ["quant", "options"] else 2])
    # Lists have places of their own: the second value of data.patch_size is data.patch_size[1].
    where = key + "".join(f"[{number}]" for number in numbers)
    limits = details.get("ctx", {})
    if details["type"] == "value_error":
        return key, str(limits["error"])
    if details["type"] == "missing":
        return key, f"{where} is missing; {key} needs more values"
    expected = _EXPECTED.get(details["type"])
    wanted = expected.format(**limits) if expected else f"valid ({details['msg']})"
    return key, f"{where} must be {wanted}; found {shown(details['input'])}"
