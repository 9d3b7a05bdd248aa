"""Keeping header values out of logs and warnings while the DICOM libraries work."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("pydicom", "highdicom")
_ABOVE_ALL = logging.CRITICAL + 1


@contextmanager
def quiet_dicom() -> Iterator[None]:
    """Silence warnings and the DICOM libraries' log records inside the block; both are as before after it.

    The libraries quote header values (names, identifiers, dates) in what they warn and log. What matters of it is found
    again by medquant's own checks, and said without the value.
    """
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in _LOGGERS:
                # A level, not a filter: it also reaches the loggers below.
                logging.getLogger(name).setLevel(_ABOVE_ALL)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
