"""A run that was killed or stopped and resumed ends with the same bits as one that was not.

Expected: the tensors and the model file of an uninterrupted run of the same command.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_runs import resume_command, train_command

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _results(run: Path) -> dict[str, bytes]:
    """Every trained bit of a finished run: checkpoints and the model's tensors; records without their times."""
    found = {
        str(file.relative_to(run)): file.read_bytes() for folder in ("best", "float", "warm", "last") for file in run.glob(f"{folder}/*")
    }
    found["model.mq"] = (run / "model.mq").read_bytes()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: record[key] for key in record if not key.endswith("_s")} for record in records]
    found["metrics"] = json.dumps(kept).encode()
    return found


def _run(command: list[str], cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, env=ENVIRONMENT, check=True, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """Results of a run nobody disturbed, and the seconds from its first checkpoint to its end."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    _run(train_command(folder / "run"), folder)
    return _results(folder / "run"), time.monotonic() - started


def _interrupted(folder: Path, delay_s: float, number: int) -> tuple[dict[str, bytes], int | None]:
    """Start, signal after a delay counted from the run folder's appearance, resume; results and the first exit code."""
    run = folder / "run"
    child = subprocess.Popen(train_command(run), cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "run.json").exists() and child.poll() is None:
        time.sleep(0.005)
    time.sleep(delay_s)
    child.send_signal(number)
    code = child.wait(timeout=300)
    if not (run / "model.mq").exists() or code != 0:
        _run(resume_command(run), folder)
    return _results(run), code


def _differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def test_killed_run_resumes_to_the_same_bits(uninterrupted: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    expected, _ = uninterrupted
    found, code = _interrupted(tmp_path, 1.0, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert _differing(found, expected) == []


@pytest.mark.slow  # tests/cli/test_commands.py sends signals within one process
def test_ctrl_c_saves_and_resumes_to_the_same_bits(uninterrupted: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    expected, _ = uninterrupted
    found, code = _interrupted(tmp_path, 1.0, signal.SIGINT)
    assert code == 130
    assert _differing(found, expected) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
def test_twenty_kills(uninterrupted: tuple[dict[str, bytes], float], tmp_path: Path, moment: int) -> None:
    expected, lasted_s = uninterrupted
    delay_s = random.Random(moment).uniform(0.0, 0.9 * lasted_s)
    found, _ = _interrupted(tmp_path, delay_s, signal.SIGKILL)
    assert _differing(found, expected) == []
