"""A real sweep killed again and again, and a worker killed beneath one: nothing is lost and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medquant.search.ledger import read_ledgers

REPOSITORY = Path(__file__).resolve().parents[2]
SWEEP = """
set:
  data.patch_size: [32, 32]
  data.batch_size: 2
  data.augmentation: none
  train.epochs: 2
  train.warm_fraction: 0.5
  train.steps_per_epoch: 2
  train.validation_slices: 4
  train.threads: 1
  train.device: cpu
  model.channels: 2
  model.depth: 2
grid: {train.seed: [0, 1, 2, 3, 4, 5]}
share_float: true
"""


def start(file: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "medquant.cli.main", "sweep", str(file), "--out", str(out), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(out: Path) -> int:
    return len(read_ledgers(out).ended) if out.is_dir() else 0


def wait_for(out: Path, count: int, running: subprocess.Popen[bytes]) -> None:
    before = time.monotonic()
    while ended(out) < count and running.poll() is None and time.monotonic() - before < 300:
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_five_times_it_comes_to_the_same(tmp_path: Path, jobs: str) -> None:
    file = tmp_path / "kill.yaml"
    file.write_text(SWEEP)
    straight = start(file, tmp_path / "straight", "--jobs", jobs)
    _, said = straight.communicate(timeout=600)
    assert straight.returncode == 0, said.decode()
    out = tmp_path / "killed"
    for number in range(1, 6):
        running = start(file, out, "--jobs", jobs)
        wait_for(out, 2 * number, running)
        time.sleep(0.03 * number)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
    last = start(file, out, "--jobs", jobs)
    _, said = last.communicate(timeout=600)
    assert last.returncode == 0, said.decode()
    expected, found = read_ledgers(tmp_path / "straight"), read_ledgers(out)
    bits = [{trial: outcome.document["weights_sha256"] for trial, outcome in history.ended.items()} for history in (expected, found)]
    assert bits[0] == bits[1]
    assert len(bits[0]) == 12
    events = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "ended" for event in events) == 12


@pytest.mark.slow
def test_a_worker_killed_beneath_a_sweep_costs_nothing_but_its_trial(tmp_path: Path) -> None:
    file, out = tmp_path / "kill.yaml", tmp_path / "out"
    file.write_text(SWEEP)
    running = start(file, out, "--jobs", "2")
    wait_for(out, 3, running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 0, said.decode()
    assert {outcome.status for outcome in read_ledgers(out).ended.values()} == {"finished"}
    assert "once more" in said.decode()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path, jobs: str) -> None:
    file, out = tmp_path / "kill.yaml", tmp_path / "out"
    file.write_text(SWEEP)
    running = start(file, out, "--jobs", jobs)
    wait_for(out, 3, running)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said.decode()
    assert 3 <= ended(out) < 12
    again = start(file, out, "--jobs", jobs)
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said.decode()
    assert {outcome.status for outcome in read_ledgers(out).ended.values()} == {"finished"}
