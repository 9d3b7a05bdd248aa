"""What the torch engine does before any arithmetic: how it loads torch, and what it chooses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the torch engine needs torch")

_OPEN = """
import os, sys
import numpy as np
{before}
from medquant.deploy.engines.torch_engine import TorchEngine
from medquant.quant.formats import TensorFormat
from medquant.quant.graph import ConvGeometry
from medquant.quant.program import ConvolutionNode, ImageNode, IntegerProgram
assert {loaded} == ("torch" in sys.modules)
one = np.ones(1, np.int64)
last = ConvolutionNode("c", ("input",), None, one.reshape(1, 1, 1, 1), one, one, 4, ConvGeometry((1, 1), (0, 0), (1, 1)), False)
engine = TorchEngine(IntegerProgram((ImageNode("input", (), TensorFormat(8, 0, 0), 1), last), (1,)))
print(engine.run(np.full((1, 1, 2, 2), 6, np.uint8)).ravel().tolist(), os.environ.get("OMP_WAIT_POLICY"))
"""


def opened(before: str = "", **settings: str) -> tuple[str, str]:
    """What a fresh process prints that opens the engine, and how often OpenMP says that its threads look before they sleep."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **settings}
    code = _OPEN.format(before=before, loaded=bool(before))
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    spins = [line.split("'")[1] for line in ended.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not spins:
        pytest.skip("this torch's OpenMP does not say what it is set to")
    return ended.stdout.strip(), spins[0]


def test_waiting_threads_sleep_and_the_environment_is_as_before() -> None:
    assert opened() == ("[7, 7, 7, 7] None", "0")


@pytest.mark.slow
def test_what_the_user_set_stays() -> None:
    assert opened(GOMP_SPINCOUNT="1234") == ("[7, 7, 7, 7] None", "1234")
    printed, spin = opened(OMP_WAIT_POLICY="active")
    assert printed == "[7, 7, 7, 7] active"
    assert int(spin) > 0


@pytest.mark.slow
def test_a_torch_that_is_loaded_is_left_as_it_is() -> None:
    printed, spin = opened(before="import torch")
    assert printed == "[7, 7, 7, 7] None"
    assert int(spin) > 0
