"""A folder that is there whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medquant.errors import UsageError

SUFFIX = ".part"


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Give a folder ``OUT.part`` to fill, which takes the name ``out`` when the block ends without an error.

    After an error, ctrl-C included, it is removed. After a crash it stays, under the name that says so.

    Raises:
        UsageError: ``out`` is a file, a link or a filled folder, ``OUT.part`` is left from before, or nothing can be written there.
    """
    staged = out.with_name(out.name + SUFFIX)
    try:
        if out.is_symlink():
            raise UsageError(f"{out}: is a link, expected a new folder; give the folder it leads to, or another name")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError(f"{out}: is there and not empty, expected a new folder; choose another name, or remove it first")
        if staged.exists():
            raise UsageError(f"{staged}: is left from a command that was cut off, or still at work; remove it, then try again")
        staged.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); check the path and its permissions") from error
    try:
        yield staged
        if out.exists():
            out.rmdir()
        # Fails on a folder that was filled meanwhile.
        staged.rename(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); free some space or choose another place") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
