"""Servers that only predict have no torch: what they run must import without it, and say so where it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "monai", "safetensors", "tensorboard"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def _run(code: str, repository: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _BLOCK + code]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "medquant.cli.main",
        "medquant.deploy.packed",
        "medquant.deploy.verification",
        "medquant.predict.proof",
        "medquant.train.rescore",
        "medquant.evaluate.process_memory",
    ],
)
def test_imports_without_torch(module: str, repository: Path) -> None:
    ended = _run(f"import {module}", repository)
    assert ended.returncode == 0, ended.stderr


def test_training_without_torch_says_what_is_missing(repository: Path, tmp_path: Path) -> None:
    code = f"from medquant.cli.main import app\nimport os\nos.chdir({str(tmp_path)!r})\napp(['train'])"
    ended = _run(f"sys.path.insert(0, {str(repository)!r})\n{code}", repository)
    assert ended.returncode == 2
    assert "needs torch, which is not installed here" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
