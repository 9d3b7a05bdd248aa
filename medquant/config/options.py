"""Options of a registered part (``quant.options``): checked against a section that only the part itself knows."""

from __future__ import annotations

from pydantic import ValidationError

from medquant.config.mistakes import describe
from medquant.config.schema import Section
from medquant.errors import unknown_name


def describe_options(error: ValidationError, owner: str, options: type[Section]) -> list[str]:
    """A line for each mistake, with the key as users write it.

    Args:
        error: of validating the options.
        owner: name of the method they belong to.
        options: its section.
    """
    lines = []
    for details, (key, message) in zip(error.errors(include_url=False), describe(error), strict=True):
        if details["type"] == "extra_forbidden":
            lines.append(f"quant.options: {unknown_name(f'option of {owner}', key, options.model_fields)}")
        else:
            lines.append(f"quant.options.{message}" if message.startswith(key) and key else f"quant.options ({owner}): {message}")
    return lines
