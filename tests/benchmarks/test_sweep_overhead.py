"""The measurement of what a swept trial costs: that it runs and tells its parts apart. Times are not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_part_is_measured(repository: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.sweep_overhead", "--trials", "2"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: float(line.split("  ", 1)[1].split()[0]) for line in done.stdout.splitlines()[2:] if line.strip()}
    parts = ["optimiser steps", "batches", "validation", "scoring", "calibration", "check of the integer program", "everything else"]
    assert list(rows) == ["bare loop", "trial", *parts]
    assert all(rows[part] > 0 for part in parts)
