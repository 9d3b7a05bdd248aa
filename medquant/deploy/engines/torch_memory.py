"""Keeps the C library from giving large tensors back to the system between two operators.

glibc maps every block above 32 MB anew and unmaps it when it is freed, so that each large tensor costs a page fault for every
4 KiB: a fifth of the time of a volume in the 8-bit operators. There is no way to hand torch's operators memory to write to, and
the setting cannot be limited to one engine: it holds for the process, which keeps what it once used for tensors until it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_HIGHEST_INT = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next tensor; once in a process.

    Returns:
        False where nothing was changed: another C library, or the user's own settings of malloc are in the environment.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        return bool(library.mallopt(_M_MMAP_MAX, 0)) and bool(library.mallopt(_M_TRIM_THRESHOLD, _HIGHEST_INT))
    return False
