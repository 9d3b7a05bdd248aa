"""The interface every engine has. Knows no library: what an engine runs on is imported when it is opened."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medquant.deploy.decide import decide
from medquant.errors import InputError
from medquant.quant.program import IntegerProgram


@dataclass(frozen=True)
class EngineInfo:
    """What the registry and ``medquant doctor`` know of an engine.

    Args:
        name: what users type.
        summary: one line.
        exact: whether the contract test has shown it equal to the reference in every value.
        priority: ``auto`` takes the available exact engine with the highest that accepts the program, see :meth:`Engine.priority`.
        package: the library it runs on, None where numpy is enough.
    """

    name: str
    summary: str
    exact: bool
    priority: int
    package: str | None = None


class Engine(ABC):
    """Runs one integer program.

    Args:
        program: the network.

    Raises:
        EngineMismatchError: the engine cannot run this program exactly; the message names the node and the reason.
    """

    info: EngineInfo

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the engine cannot work on this machine, None where it can. Imports nothing heavy."""
        from importlib.util import find_spec

        if cls.info.package is not None and find_spec(cls.info.package) is None:
            return f"{cls.info.package} is not installed; pip install {cls.info.package}"
        return None

    @classmethod
    def priority(cls) -> int:
        """What ``auto`` goes by on this machine; asked only of an engine that can work here."""
        return cls.info.priority

    def try_out(self) -> None:
        """Meet now what would otherwise stop the first image; ``auto`` does, to take another engine instead.

        Raises:
            EngineMismatchError: the engine has no kernel for the program on this machine.
        """
        return None

    @abstractmethod
    def run(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Run the program.

        Args:
            image: the quantized image, (N, C, *S), see :func:`medquant.deploy.decide.quantize_image`.

        Returns:
            The output integers, (N, outputs, *S): accumulators, or the integers of the output's format.

        Raises:
            InputError: another number type, axes or channels.
        """

    def run_bytes(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As :meth:`run`, for a program that ends in a format and not in accumulators: its integers, a byte each."""
        return self.run(image).astype(np.uint8)

    def run_decided(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Class numbers, (N, *S): :func:`medquant.deploy.decide.decide` of what :meth:`run` returns.

        Raises:
            InputError: another number type, axes or channels.
        """
        return decide(self.run(image), self.program)

    def check_image(self, image: NDArray[np.uint8]) -> None:
        """Refuse what the program does not read.

        Raises:
            InputError: another number type, axes or channels.
        """
        channels = self.program.image.channels
        # All weights have as many axes; a program without any takes what it is given.
        axes = {node.weight.ndim for node in self.program.convolutions} or {image.ndim}
        if image.ndim < 3 or image.ndim not in axes or image.shape[1] != channels or image.dtype != np.uint8:
            raise InputError(
                f"the program reads uint8 images of {channels} channel(s) as (N, C, ...) with {max(axes)} axes; "
                f"found {image.dtype} {image.shape}"
            )


def thread_count() -> int:
    """Processor threads an engine may use: ``OMP_NUM_THREADS`` where it is set, otherwise those this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
