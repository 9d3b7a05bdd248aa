"""Registry of engines: one file each, one line here."""

from __future__ import annotations

from medquant.deploy.engines.base import Engine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.engines.torch_engine import TorchEngine
from medquant.errors import UsageError, unknown_name

ENGINES: dict[str, type[Engine]] = {engine.info.name: engine for engine in (ReferenceEngine, TorchEngine)}


def get_engine(name: str) -> type[Engine]:
    """The engine of this name; ``auto`` is the fastest exact one that works here.

    Raises:
        UsageError: there is none of this name, or it does not work on this machine.
    """
    if name == "auto":
        working = [engine for engine in ENGINES.values() if engine.info.exact and engine.unavailable() is None]
        return max(working, key=lambda engine: engine.info.priority)
    if name not in ENGINES:
        raise UsageError(unknown_name("engine", name, [*ENGINES, "auto"]))
    reason = ENGINES[name].unavailable()
    if reason is not None:
        raise UsageError(f"engine {name!r} does not work here: {reason}")
    return ENGINES[name]
