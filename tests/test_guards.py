"""The guards of conftest.py, tried on small suites that leave something behind on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = {
    "environment variables changed: LEFT_BEHIND": "import os\ndef test_leak():\n    os.environ['LEFT_BEHIND'] = '1'\n",
    "threads running: worker": (
        "import threading, time\ndef test_leak():\n    threading.Thread(target=time.sleep, args=(3,), name='worker').start()\n"
    ),
    "the working folder at": "import os\ndef test_leak(tmp_path):\n    os.chdir(tmp_path)\n",
    "torch settings changed: threads = 3 (was 1), default dtype = torch.float64 (was torch.float32)": (
        "import torch\ntorch.set_num_threads(1)\n"
        "def test_leak():\n    torch.set_num_threads(3)\n    torch.set_default_dtype(torch.float64)\n"
    ),
}
CLEAN = "def test_after(monkeypatch):\n    monkeypatch.setenv('FINE', '1')\n"


@pytest.mark.parametrize("message", LEAKS)
def test_a_leak_fails_the_test_that_leaks_and_no_other(tmp_path: Path, repository: Path, message: str) -> None:
    shutil.copy(repository / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_small.py").write_text(LEAKS[message] + CLEAN)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_small.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout
    assert "2 passed, 1 error" in result.stdout
    assert f"the test left {message}" in result.stdout


def test_real_images_may_be_missing(tmp_path: Path, repository: Path) -> None:
    shutil.copy(repository / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_small.py").write_text("def test_real(shared_data):\n    assert shared_data.is_dir()\n")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_small.py"]
    for folder, outcome in ((tmp_path / "none", "1 skipped"), (tmp_path, "1 passed")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["MEDQUANT_SHARED_DATA"] = str(folder)
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert outcome in result.stdout
        if outcome == "1 skipped":
            assert "set MEDQUANT_SHARED_DATA to their folder" in result.stdout


def test_names_of_test_files_are_unique(repository: Path) -> None:
    # Two of one name are one module to pytest, which then collects neither or the wrong one.
    names = [file.name for file in (repository / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
