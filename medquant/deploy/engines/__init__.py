"""Registry of engines: one file each, one line here."""

from __future__ import annotations

from medquant.deploy.engines.base import Engine
from medquant.deploy.engines.native_engine import NativeEngine
from medquant.deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from medquant.deploy.engines.openvino_engine import OpenVinoEngine
from medquant.deploy.engines.reference import ReferenceEngine
from medquant.deploy.engines.torch_engine import TorchEngine
from medquant.errors import EngineMismatchError, UsageError, unknown_name
from medquant.quant.program import IntegerProgram

_ALL: tuple[type[Engine], ...] = (ReferenceEngine, OnnxRuntimeEngine, TorchEngine, OpenVinoEngine, NativeEngine)

ENGINES: dict[str, type[Engine]] = {engine.info.name: engine for engine in _ALL}

AUTO = "auto"


def check_engine(name: str) -> None:
    """Refuse a name no engine has, or that of an engine that cannot work on this machine.

    Raises:
        UsageError: there is none of this name, or it does not work here.
    """
    if name == AUTO:
        return
    if name not in ENGINES:
        raise UsageError(unknown_name("engine", name, [*ENGINES, AUTO]))
    reason = ENGINES[name].unavailable()
    if reason is not None:
        raise UsageError(f"engine {name!r} does not work here: {reason}")


def open_engine(name: str, program: IntegerProgram, try_out: bool = True) -> Engine:
    """The engine of this name with a program in it; ``auto``: the fastest exact one that works here and takes the program.

    ``try_out=False`` leaves out the trial run by which ``auto`` finds that an engine has no kernel here.

    Raises:
        UsageError: there is none of this name, or it does not work on this machine.
        EngineMismatchError: the engine cannot run this program exactly.
    """
    check_engine(name)
    if name != AUTO:
        return ENGINES[name](program)
    for engine in sorted(ENGINES.values(), key=lambda engine: -engine.info.priority):
        if not engine.info.exact or engine.unavailable() is not None:
            continue
        try:
            opened = engine(program)
            if try_out:
                opened.try_out()
            return opened
        except EngineMismatchError:
            # It says itself that it would be wrong, or cannot run here; the reference, last in line, takes every program.
            continue
    raise EngineMismatchError("no engine here runs this program")
