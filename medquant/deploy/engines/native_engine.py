"""``native``: the package's own library, see native/src; weights stay in 4 or 8 bits there."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.engines.base import Engine, EngineInfo, thread_count
from medquant.deploy.engines.freed_memory import give_back_freed_memory
from medquant.deploy.native import library as native
from medquant.deploy.native.program import encode_program
from medquant.errors import EngineMismatchError, MedquantError, UsageError
from medquant.quant.program import ConvolutionNode, IntegerProgram

_Output = TypeVar("_Output", NDArray[np.int32], NDArray[np.uint8])

_FASTEST_WITH = ("avx512vnni", "avxvnni")
_PRIORITY_WITHOUT = 10
"""Behind openvino and torch, before what only makes sure that a network runs."""


class NativeEngine(Engine):
    """Hands the program to the library once; threads that run one engine take turns.

    The weights of :attr:`program` are zeros that take no memory: the library has its own, packed to 4 or 8 bits.
    """

    info = EngineInfo("native", "exact Winograd and 8-bit kernels of our own on the CPU", exact=True, priority=40)

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__(without_weights(program))
        self._library = native.load_library()
        self._handle = _opened(self._library, program)
        self._turn = Lock()
        self._has_run = False
        self._process = os.getpid()
        closing = weakref.finalize(self, _close, self._library, self._handle, self._process)
        # The end of the process takes it all, and another thread may be in the middle of a run then.
        closing.atexit = False

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the library does not work here, see :meth:`Engine.unavailable`."""
        return native.why_missing()

    @classmethod
    def priority(cls) -> int:
        """The highest where one instruction multiplies and adds bytes; where none does, other libraries have faster kernels.

        Raises:
            UsageError: ``MEDQUANT_KERNELS`` names none of this processor.
        """
        return cls.info.priority if native.chosen_kernels(native.load_library()) in _FASTEST_WITH else _PRIORITY_WITHOUT

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program, see :meth:`Engine.run`."""
        return self._in_turn(self._library.run, image)

    def run_decided(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class numbers, decided in the library: its output integers never leave it, see :meth:`Engine.run_decided`."""
        return self._in_turn(self._library.decide, image)

    def _in_turn(self, run: Callable[[int, NDArray[np.uint8]], _Output], image: NDArray[np.uint8]) -> _Output:
        self.check_image(image)
        # Before the lock: a thread that held it as the process was forked lets it go in the parent only.
        if os.getpid() != self._process:
            raise EngineMismatchError(
                "engine native cannot run in the fork of the process that opened it; open the model after the fork, "
                "or start processes by spawning"
            )
        with self._turn:
            if not self._has_run:
                # Not when it is opened: until then its caller holds the weights.
                give_back_freed_memory()
                self._has_run = True
            return run(self._handle, image)


def without_weights(program: IntegerProgram) -> IntegerProgram:
    """The program with zeros of the same shapes for weights, which take one byte a layer."""
    nodes = tuple(
        replace(node, weight=np.broadcast_to(np.zeros((), np.int8), node.weight.shape)) if isinstance(node, ConvolutionNode) else node
        for node in program
    )
    return replace(program, nodes=nodes)


def _opened(library: native.NativeLibrary, program: IntegerProgram) -> int:
    kernels = native.forced_kernels(library)
    block, weights = encode_program(program)
    try:
        return library.open(block, weights, kernels, thread_count())
    except (UsageError, EngineMismatchError):
        raise
    except (MedquantError, MemoryError) as error:
        # No memory, no threads: another engine may do.
        raise EngineMismatchError(f"engine native cannot open the program here ({error}); use another engine") from error


def _close(library: native.NativeLibrary, handle: int, process: int) -> None:
    # A fork has none of its parent's threads, for which closing would wait.
    if os.getpid() == process:
        library.close(handle)
