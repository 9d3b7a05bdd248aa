"""OpenVINO without its telemetry: importing the package reports to its maker over the network unless that is prevented."""

from __future__ import annotations

import os
import sys
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from medquant.errors import EngineMismatchError

if TYPE_CHECKING:
    from openvino import Core

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """The ``openvino`` package; sends nothing, starts no thread and writes nothing to the user's home.

    ``openvino.tools.ovc``, which the package imports, sends an event as it is imported, and uses a stub where its telemetry
    package is missing (telemetry_utils.py of OpenVINO 2026.4). A module that is None is missing to the import system.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    if "openvino" not in sys.modules and _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[_TELEMETRY]
        return openvino  # type: ignore[no-any-return]
    import openvino

    return openvino  # type: ignore[no-any-return]


def openvino_core() -> Core:
    """The one OpenVINO core of this process, kept until the process ends.

    The CPU plugin of a core gives the calling thread a stack for signal handlers and, when it is destroyed, puts back the one it
    found (``sigaltstack``, OpenVINO 2026.4). Where two cores overlap and the first goes first, the second puts back the freed stack
    of the first, and the next signal that Python handles (ctrl-C, SIGTERM) ends the process with a segmentation fault. A core that
    is never destroyed puts nothing back.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
        EngineMismatchError: the process is the fork of one that has used OpenVINO, whose threads a fork does not have: it would wait
            for them for ever.
    """
    core, process = _made()
    if process != os.getpid():
        raise EngineMismatchError(
            "OpenVINO cannot run in the fork of a process that has used it; use another engine, or start processes by spawning"
        )
    return core


@cache
def _made() -> tuple[Core, int]:
    return import_openvino().Core(), os.getpid()
