"""Importing OpenVINO must not call anybody; the package does so by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_WATCH = """
import socket, sys, threading
called = []
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, lambda self, *rest, name=name: called.append(name))
socket.getaddrinfo = lambda *rest, **named: called.append("getaddrinfo") or []
{body}
import time
time.sleep(0.5)
print(called, threading.active_count(), "openvino_telemetry" in sys.modules, openvino.Core().available_devices[:1])
"""


def _said(body: str, repository: Path, home: Path) -> str:
    command = [sys.executable, "-c", _WATCH.format(body=body)]
    environment = {"PYTHONPATH": str(repository), "HOME": str(home), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip().splitlines()[-1]


def test_nothing_is_sent_and_nothing_written(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    body = "from medquant.deploy.openvino_import import import_openvino\nopenvino = import_openvino()"
    assert _said(body, repository, tmp_path) == "[] 1 False ['CPU']"
    assert list(tmp_path.iterdir()) == []


def test_only_one_file_imports_the_package(repository: Path) -> None:
    found = [
        path.name
        for path in sorted((repository / "medquant").rglob("*.py"))
        if re.search(r"^\s*(import openvino\b|from openvino\b)", re.sub(r"if TYPE_CHECKING:\n(?:    .*\n|\n)+", "", path.read_text()), re.M)
    ]
    assert found == ["openvino_import.py"]


_SIGNAL_AFTER_ENGINES = """
import gc, os, signal
import numpy as np
from medquant.deploy.engines.openvino_engine import OpenVinoEngine
from medquant.quant.formats import TensorFormat
from medquant.quant.program import ImageNode, IntegerProgram, ReluNode

program = IntegerProgram((ImageNode("image", (), TensorFormat(8, 128, 5), 1), ReluNode("relu", ("image",), TensorFormat(6, 0, 4))), (4,))
first, second = OpenVinoEngine(program), OpenVinoEngine(program)
for engine in (first, second):
    engine.run(np.zeros((1, 1, 8, 8), np.uint8))
# The one opened first goes first.
del engine, first
gc.collect()
del second
gc.collect()
got = []
signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
os.kill(os.getpid(), signal.SIGTERM)
print(got)
"""


def test_a_signal_after_two_engines_reaches_its_handler(repository: Path, tmp_path: Path) -> None:
    """Each of two OpenVINO cores leaves the stack for signal handlers of the other, which is freed by then: a crash."""
    pytest.importorskip("openvino")
    environment = {"PYTHONPATH": str(repository), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SIGNAL_AFTER_ENGINES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[15]"), ended.stderr


_ENGINE_IN_A_FORK = """
import os
import numpy as np
from medquant.deploy.engines import open_engine
from medquant.errors import EngineMismatchError
from medquant.quant.formats import TensorFormat
from medquant.quant.program import ImageNode, IntegerProgram, ReluNode

program = IntegerProgram((ImageNode("image", (), TensorFormat(8, 128, 5), 1), ReluNode("relu", ("image",), TensorFormat(6, 0, 4))), (4,))
image = np.zeros((1, 1, 8, 8), np.uint8)
expected = open_engine("openvino", program).run(image)
child = os.fork()
if child == 0:
    try:
        open_engine("openvino", program).run(image)
    except EngineMismatchError as error:
        print("refused" if "fork" in str(error) else error, flush=True)
    engine = open_engine("auto", program)
    print(engine.info.name != "openvino" and np.array_equal(engine.run(image), expected), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_fork_of_a_process_that_used_it_takes_another_engine_and_does_not_wait_for_ever(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    environment = {"PYTHONPATH": str(repository), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _ENGINE_IN_A_FORK]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (ended.returncode, ended.stdout.split()) == (0, ["refused", "True"]), ended.stderr
