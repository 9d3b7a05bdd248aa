"""Gives back to the system what the C library keeps of memory that is already free."""

from __future__ import annotations

import contextlib
import ctypes
import platform


def give_back_freed_memory() -> None:
    """Once a model is open: glibc keeps the blocks through which its weights went, in all about as much as the file has weights.

    Elsewhere nothing happens: only glibc has to be asked.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
