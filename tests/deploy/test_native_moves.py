"""The native engine's operations beside convolutions, against their definition in 64-bit integers, under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
ROUNDS = 120

# What a kernel set is compiled with, and the names of what the processor must have to run it (as /proc/cpuinfo spells them).
FLAGS = {
    "portable": ((), ()),
    "avx2": (("-mavx2",), ("avx2",)),
    "avx512": (("-mavx512f", "-mavx512bw", "-mavx512vl"), ("avx512f", "avx512bw", "avx512vl")),
}


def _processor_has(names: tuple[str, ...]) -> bool:
    if not names:
        return True
    listing = Path("/proc/cpuinfo")
    return listing.is_file() and set(names) <= set(listing.read_text().split())


# The default run meets the same functions in every kernel set through test_native_kernels.
@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("kernels", FLAGS)
def test_every_function_agrees_with_its_definition(kernels: str, repository: Path, tmp_path: Path) -> None:
    flags, needed = FLAGS[kernels]
    if not _processor_has(needed):
        pytest.skip(f"this processor lacks one of {', '.join(needed)}")
    source, program = repository / "native" / "tests" / "moves_test.cpp", tmp_path / "moves_test"
    sanitized = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = [str(COMPILER), "-std=c++17", "-Wall", "-Wextra", "-Werror", *sanitized, *flags, str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    run = subprocess.run([str(program), str(ROUNDS)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    # Nine functions a round and nine ties counted by hand: a run that compares less has not tested them.
    assert run.stdout == f"{9 * ROUNDS + 9} comparisons, 0 failures\n"
