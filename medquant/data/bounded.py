"""Small files of unknown origin, read so that no pipe keeps us waiting, no device fills the memory and no nesting ends the program."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

MAX_JSON_BYTES = 64 * 1024**2
"""Largest JSON document that is read unless the caller gives another limit."""


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it is missing or cannot be read, is a pipe, device or folder, or holds more than ``most_bytes``.
    """
    # Without O_NONBLOCK the mere opening of a pipe waits for its other end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "found a pipe, device or folder, expected a file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"found more than {most_bytes / 2**20:g} MiB")
    return content


def read_bounded_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> object:
    """The JSON document in a file.

    Raises:
        OSError: see :func:`read_bounded`.
        ValueError: it is no JSON, or nested deeper than the parser can follow.
    """
    try:
        found: object = json.loads(read_bounded(path, most_bytes))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found
