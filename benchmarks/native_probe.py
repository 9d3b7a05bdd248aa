"""Compiles and runs the C++ beside this file: what the processor can do at most, and the stages of the Winograd kernel apart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from medquant.deploy.native import load_library

FOLDER = Path(__file__).resolve().parent
_FLAGS = FOLDER.parent / "native" / "cmake" / "kernel_sets.cmake"
_MEASURED_SETS = ("avx512vnni", "avxvnni")
_LIMIT_S = 600


@dataclass(frozen=True)
class Peaks:
    """Billions a second, all threads together: operations of byte products (two a product), bytes read."""

    products: float
    l2: float
    l3: float
    memory: float


@dataclass(frozen=True)
class Stages:
    """Nanoseconds of the fastest round, on one thread. Where products and outputs are one function, ``outputs`` is 0."""

    inputs: float
    products: float
    outputs: float

    @property
    def total(self) -> float:
        return self.inputs + self.products + self.outputs


class CannotProbeError(Exception):
    """This machine has no compiler, or a processor whose peak is not known to be measured."""


def measure_peaks(threads: int, milliseconds: int = 300) -> Peaks:
    """The peaks of this processor with so many threads.

    Raises:
        CannotProbeError: see :class:`CannotProbeError`.
    """
    found = dict(line.split() for line in _run("native_peak.cpp", [threads, milliseconds]))
    return Peaks(*(float(found[name]) for name in ("products", "L2", "L3", "memory")))


def measure_stages(layers: Sequence[tuple[int, int, int]], rounds: int) -> list[Stages]:
    """Stages of 3x3 layers, each (input channels, output channels, side).

    Raises:
        CannotProbeError: see :class:`CannotProbeError`.
    """
    lines = _run("native_parts.cpp", [rounds, *(number for layer in layers for number in layer)])
    return [Stages(*(float(value) for value in line.split()[3:])) for line in lines]


def _run(source: str, arguments: Sequence[int]) -> list[str]:
    command = [str(_built(source)), *(str(each) for each in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True).stdout.splitlines()


@cache
def _built(source: str) -> Path:
    kernels = next((each for each in load_library().kernels if each in _MEASURED_SETS), None)
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if kernels is None or compiler is None:
        raise CannotProbeError(f"{source} needs a C++ compiler (g++, or CXX) and a processor with one of {', '.join(_MEASURED_SETS)}")
    program = Path(mkdtemp(prefix="medquant-bench-")) / Path(source).stem
    options = ["-O3", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-function", "-pthread", *_flags_of(kernels)]
    done = subprocess.run([compiler, *options, str(FOLDER / source), "-o", str(program)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotProbeError(f"{source} does not compile: {done.stderr.strip()[-500:]}")
    return program


def _flags_of(kernels: str) -> list[str]:
    """The compiler flags with which the library's kernels of this name are built."""
    found = re.search(rf"^set\(medquant_flags_{kernels} (.*)\)$", _FLAGS.read_text(), re.MULTILINE)
    if found is None:
        raise CannotProbeError(f"{_FLAGS} has no flags for {kernels}")
    return found[1].split()
