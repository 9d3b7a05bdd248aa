"""The private folder a scan's decoded voxels lie in while it is predicted, and the folders that killed processes left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medquant.errors import UsageError

_PREFIX = "medquant-scan-"
_NAME = re.compile(re.escape(_PREFIX) + r"(?P<pid>[0-9]{1,9})-\w+")
_MOST_TRIES = 10


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of one's own in TMPDIR, removed at the end; what dead processes of this user left there is removed first.

    The name holds the process id, and the folder is locked while its process lives: ids of another container mean nothing here.

    Raises:
        UsageError: no folder can be made.
    """
    _remove_leftovers(Path(tempfile.gettempdir()))
    folder, descriptor = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked_folder() -> tuple[Path, int]:
    try:
        for _ in range(_MOST_TRIES):
            folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
            descriptor = _lock(folder)
            if descriptor is not None:
                return folder, descriptor
            # Between making and locking, a process of another container took it for a leftover.
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{tempfile.gettempdir()}: no folder for decoded scans can be made ({error.strerror}); set TMPDIR") from error
    raise UsageError(f"{tempfile.gettempdir()}: a folder for decoded scans cannot be locked; set TMPDIR to a folder on a local disk")


def _remove_leftovers(temporary: Path) -> None:
    """Remove folders of dead processes: never another user's, never what a link points to. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for entry in temporary.iterdir():
            match = _NAME.fullmatch(entry.name)
            if match is None or _is_alive(int(match["pid"])):
                continue
            with contextlib.suppress(OSError):
                state = entry.lstat()
                descriptor = _lock(entry) if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() else None
                if descriptor is not None:
                    shutil.rmtree(entry, ignore_errors=True)
                    os.close(descriptor)


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        # In a container every process has the same id: the lock alone tells whether it lives.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # It is somebody else's.
        return True
    return True


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock until it is closed; None where another process holds it, or the folder is gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
