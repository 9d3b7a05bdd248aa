"""The kinds of failure a user can meet, each with the exit code the command line ends with.

A message names what was found, what was expected, the file or key, and what to do about it, in one or two lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedquantError(Exception):
    """Base of every error medquant raises on purpose; ``exit_code`` is what the command line returns.

    Args:
        lines: the message, line by line. A line break within one was not meant: it came with the name of a file, and is shown escaped.
    """

    exit_code: int = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The message, line by line."""
        return tuple(str(line) for line in self.args)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class UsageError(MedquantError):
    """An option or argument that cannot be used as typed."""

    exit_code = 2


class ConfigError(MedquantError):
    """A configuration with one or more mistakes, all listed in the message."""

    exit_code = 3


class InputError(MedquantError):
    """A scan, label or dataset that cannot be read, or is not what it claims to be."""

    exit_code = 4


class GeometryError(MedquantError):
    """Arrays whose place in the world is missing, contradictory or does not match."""

    exit_code = 5


class CheckpointError(MedquantError):
    """A run folder, checkpoint or model file that is damaged, foreign or cannot be written."""

    exit_code = 6


class EngineMismatchError(MedquantError):
    """Two engines that must agree in every voxel, and do not."""

    exit_code = 7


class QualityGateError(MedquantError):
    """A result below the quality that was asked for."""

    exit_code = 8


class InterruptedRunError(MedquantError):
    """The user stopped the command; what was done so far is saved."""

    exit_code = 130


def shortened(name: str, most: int = 60) -> str:
    """A name as messages show it: of a long one the beginning and the end.

    >>> shortened("organ"), shortened("abcdefghij", most=5)
    ('organ', 'ab…ij')
    """
    kept = most - 1
    return name if len(name) <= most else f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line saying that ``name`` is no known ``kind``, with near matches first and then all that are known.

    >>> unknown_name("method", "fixd_point", ["fixed_point", "binary"])
    "unknown method 'fixd_point' (did you mean 'fixed_point'?); known: binary, fixed_point"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(repr(item) for item in near)}?)" if near else ""
    return f"unknown {kind} {name!r}{hint}; known: {', '.join(names) or 'none'}"
