"""OpenVINO without its telemetry: importing the package reports to its maker over the network unless that is prevented."""

from __future__ import annotations

import sys
from types import ModuleType

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
