"""The native engine's kernel sets against the definition in 64-bit integers, over networks drawn at random."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CMAKE = shutil.which("cmake")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
NETWORKS = 200
SAID = re.compile(
    r"^(\d+) sets:.* portable\n"
    r"(\d+) comparisons, (\d+) winograd and (\d+) direct layers, (\d+) runs in filled arenas, 0 failures$",
    re.MULTILINE,
)

pytestmark = pytest.mark.skipif(CMAKE is None or COMPILER is None, reason="needs CMake and a C++ compiler")


def _done(*command: str) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def _compare(repository: Path, folder: Path, networks: int, *options: str) -> None:
    native = str(repository / "native")
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -Werror", "-DMEDQUANT_TESTS=ON", *options]
    _done(str(CMAKE), "-S", native, "-B", str(folder), f"-DCMAKE_CXX_COMPILER={COMPILER}", *flags)
    _done(str(CMAKE), "--build", str(folder), "--parallel", "2", "--target", "kernels_test")
    said = _done(str(folder / "kernels_test"), str(networks))
    found = SAID.search(said)
    assert found is not None, said
    sets, comparisons, winograd, direct, arenas = (int(number) for number in found.groups())
    assert comparisons == sets * networks
    assert arenas == 2 * sets * networks
    # The portable set has both kinds; a run without enough of them has not tested them.
    assert winograd > networks / 4, said
    assert direct > 2 * networks, said


def test_every_kernel_set_computes_the_definition(repository: Path, tmp_path: Path) -> None:
    _compare(repository, tmp_path, NETWORKS)


@pytest.mark.slow
def test_kernel_sets_are_clean_under_sanitizers(repository: Path, tmp_path: Path) -> None:
    options = ["-DMEDQUANT_SANITIZE=address,undefined", "-DCMAKE_CXX_FLAGS=-O1 -fno-sanitize-recover=all"]
    _compare(repository, tmp_path, 2 * NETWORKS, *options)
