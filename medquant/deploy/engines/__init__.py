"""Registry of engines: one file each, one line here."""

from __future__ import annotations

from collections.abc import Callable

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


def auto_order() -> list[type[Engine]]:
    """The exact engines that work here, in the order in which ``auto`` tries them.

    Raises:
        UsageError: ``MEDQUANT_KERNELS`` names no kernel set of this processor.
    """
    here = [engine for engine in ENGINES.values() if engine.info.exact and engine.unavailable() is None]
    return sorted(here, key=lambda engine: -engine.priority())


def open_engine(name: str, program: IntegerProgram, try_out: bool = True, notify: Callable[[str], None] | None = None) -> Engine:
    """The engine of this name with a program in it; ``auto``: the fastest exact one that works here and takes the program.

    Args:
        name: as above.
        program: the network.
        try_out: False leaves out the trial run by which ``auto`` finds that an engine has no kernel here.
        notify: told, in a line each, which faster engines ``auto`` passed over and why.

    Raises:
        UsageError: there is none of this name, or it does not work on this machine.
        EngineMismatchError: the engine cannot run this program exactly.
    """
    check_engine(name)
    if name != AUTO:
        return ENGINES[name](program)
    refused: list[str] = []
    for engine in auto_order():
        try:
            opened = engine(program)
            if try_out:
                opened.try_out()
        except EngineMismatchError as error:
            # It says itself that it would be wrong, or cannot run here; the reference, last in line, takes every program.
            refused.append(f"engine {engine.info.name} does not take this program ({error})")
            continue
        if notify is not None:
            for line in refused:
                notify(f"{line}; using {opened.info.name}")
        return opened
    raise EngineMismatchError("no engine here runs this program")
