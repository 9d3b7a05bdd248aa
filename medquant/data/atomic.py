"""Writing a file so that a reader finds either the old one or the whole new one, also after a crash."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from medquant.errors import UsageError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in the place of ``path`` in one step.

    The file and its folder are flushed to the disk. When anything fails, ``path`` is left as it was and the temporary
    file is removed.

    Raises:
        UsageError: the folder does not exist, or cannot be written to.
    """
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"{path}: the folder {folder} does not exist; make it first or choose another place")
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
        temporary = Path(name)
        # Opened by name, because some writers ask a stream for its name and cannot do with a number.
        os.close(descriptor)
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files for the owner alone; a result gets the permissions any other new file would get.
        temporary.chmod(0o666 & ~_current_umask())
        temporary.replace(path)
        temporary = None
        _sync_folder(folder)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another place") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file; see :func:`write_atomically`."""

    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    write_atomically(path, write)


def _current_umask() -> int:
    # The mask can only be read by setting it; no file is made in between.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    # Some systems cannot open a folder; there the rename alone has to do.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
