"""The executable that loads a program as the native library does, built with the sanitizers where the compiler has them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_cases import case_file
from native_forging import ForgedProgram

NATIVE = Path(__file__).parents[2] / "native"
Load = Callable[..., str]


def build_loader(path: Path) -> None:
    """Skips where there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed, which builds the loader's test program")
    flags = ["-std=c++17", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]
    sources = [NATIVE / "tests" / "load_program.cpp", *sorted((NATIVE / "src").glob("program*.cpp"))]
    for sanitizers in (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], []):
        built = subprocess.run([compiler, *flags, *sanitizers, *sources, "-o", path], capture_output=True, text=True, check=False)
        if built.returncode == 0:
            return
        # A compiler may come without the sanitizers' libraries; anything else that stops the build is a mistake of ours.
        if not re.search(r"cannot find .*(asan|ubsan)", built.stderr):
            break
    pytest.fail(built.stderr)


def loading(loader: Path, folder: Path) -> Load:
    """What the loader prints on a block and its weights, or on a forged program, and on an image's size."""

    def run(program: ForgedProgram | tuple[bytes, list[Any]], *size: int) -> str:
        block, weights = (program.to_bytes(), program.weights) if isinstance(program, ForgedProgram) else program
        path = folder / "case"
        path.write_bytes(case_file(block, weights))
        return output_of([str(loader), str(path), *map(str, size)])

    return run


def output_of(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")
    return ran.stdout.decode()
